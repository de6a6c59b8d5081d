"""x W^T with the weight in the layout that the machine computes fastest with.

On a CPU that is oneDNN's blocked layout, made once after loading: torch would otherwise repack (bf16) or walk (float32)
the plain weight in every call. Measured on two cores, weights not in cache: 1.3 to 1.8 times faster at 1 to 8 rows. And
a row's bits do not depend on how many rows there are, which plain ``mm`` in float32 does not promise.

A CPU without bf16 arithmetic (AVX2 alone) has no such layout for bf16, and torch's own loops for it do 6 GFLOP/s, where
float32 does 60: there the weight stays plain, and is widened block by block as it is used.
"""

from functools import cache

import torch
import torch.nn.functional as F

from splitrank.models.rounding import ceil_div

# Packing needs both layouts of one weight at once, and loading may take 64 MiB more than the weights in all; a weight
# larger than this (a large head) stays plain.
MAX_PACKED_BYTES = 32 * 2**20
# Rows below one block of 64 are mostly padding when packed; above, padding costs 63 rows at most.
_MIN_ROWS = 64
# In float32 the call of a small packed weight costs 20 us more than torch's own GEMM; bf16 gains at every size.
_MIN_ELEMENTS = {torch.bfloat16: 1, torch.float32: 2**17}
# Of a weight that is widened: 4 MiB in float32, which stay in the caches until they are used.
_BLOCK_ELEMENTS = 2**20


@cache
def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for ``dtype`` on this CPU."""
    supported: bool = dtype is not torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def pack(weight: torch.Tensor) -> torch.Tensor:
    """weight [N, K] -> the same values for ``linear``: packed where that is possible and worth it, else unchanged."""
    packable = (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and weight.numel() >= _MIN_ELEMENTS.get(weight.dtype, MAX_PACKED_BYTES)
        and weight.nbytes <= MAX_PACKED_BYTES
        and weight.shape[0] >= _MIN_ROWS
        and cpu_computes(weight.dtype)
    )
    return torch.ops.mkldnn._reorder_linear_weight(weight, 8) if packable else weight


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, K], weight [N, K] from ``pack`` -> [T, N]."""
    if weight.layout is not torch._mkldnn:  # type: ignore[attr-defined]
        # For one row torch's loop is fast: it is bound by reading the weight.
        widens = x.shape[0] > 1 and x.device.type == "cpu" and not cpu_computes(weight.dtype)
        return _widened_linear(x, weight) if widens else F.linear(x, weight)
    num_rows = x.shape[0]
    padding = row_bucket(num_rows) - num_rows
    x = F.pad(x, (0, 0, 0, padding)) if padding else x.contiguous()
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
    return out[:num_rows] if padding else out


def _widened_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sums in float32, each rounded once."""
    wide = x.float()
    blocks = torch.split(weight, max(1, _BLOCK_ELEMENTS // weight.shape[1]))
    parts = [F.linear(wide, block.float()).to(weight.dtype) for block in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def row_bucket(num_rows: int) -> int:
    """Rows to compute for ``num_rows``: every count up to 8, then four sizes an octave.

    oneDNN compiles a kernel for every new row count (1.5 to 3 ms, 1,024 are kept): prompts and experts bring hundreds.
    """
    if num_rows <= 8:
        return num_rows
    step = 1 << (num_rows.bit_length() - 3)
    return ceil_div(num_rows, step) * step
