"""Tensors as the compiled operations take them: addresses, a dtype's code, elements between rows.

``splitrank._cpu_ops`` (csrc/cpu) checks no tensor. What it cannot take is an error of ours, hence the asserts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitrank import _cpu_ops as cpu_ops
from splitrank.models.ops.cpu import memory
from splitrank.models.rounding import ceil_div
from splitrank.models.sharding import TensorShard

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


@dataclass(frozen=True)
class Weight:
    """A weight [N, K] in panels of 16 outputs (csrc/cpu/kernels.h); ``storage`` keeps the memory that it names."""

    storage: torch.Tensor
    native: cpu_ops.Weight
    num_outputs: int


@dataclass(frozen=True)
class Experts:
    """Weights [E, N, K], packed expert by expert; ``first`` is expert 0."""

    first: Weight
    expert_bytes: int
    num_experts: int
    num_inputs: int


@dataclass(frozen=True)
class StoredRouter:
    router: Weight
    shared_gate_up: Experts


@dataclass(frozen=True)
class StoredExperts:
    gate_up: Experts
    down: Experts


def shard_bounds(num_inputs: int, shard: TensorShard) -> list[int]:
    """Where this rank's virtual shards of a row-parallel weight begin and end, among its own ``num_inputs``.

    There are four in all, cut from the whole width, and a rank has those of its columns. If tp does not divide four, a
    rank's columns are one shard: then other tp give other bits.
    """
    if cpu_ops.SHARDS % shard.size:
        return [0, num_inputs]
    count, whole = cpu_ops.SHARDS // shard.size, num_inputs * shard.size
    first, start = shard.rank * count, shard.rank * num_inputs
    return [whole * number // cpu_ops.SHARDS - start for number in range(first, first + count + 1)]


def values(tensor: torch.Tensor) -> cpu_ops.Values:
    """A tensor [rows, ...] whose rows are contiguous."""
    strides = tensor.stride()
    assert strides[-1] == 1 or tensor.shape[-1] == 1, strides
    return cpu_ops.Values(tensor.data_ptr(), DTYPE_CODES[tensor.dtype], strides[0])


def plain_weight(weight: torch.Tensor) -> Weight:
    """weight [N, K] as it lies, for products that are rare or whose weight somebody else reads, too."""
    assert weight.is_contiguous()
    num_outputs, num_inputs = weight.shape
    native = cpu_ops.Weight(
        weight.data_ptr(), DTYPE_CODES[weight.dtype], num_outputs, num_inputs, [0, num_inputs], is_packed=False
    )
    return Weight(weight, native, num_outputs)


def pack(ops: cpu_ops.Operations, weight: torch.Tensor, bounds: Sequence[int] | None = None) -> Weight:
    """weight [N, K] -> packed in place where that needs no padding, else in new storage. ``weight`` is given up."""
    assert weight.is_contiguous()
    num_outputs, num_inputs = weight.shape
    shape = _Packed(weight.dtype, num_outputs, num_inputs, list(bounds or (0, num_inputs)))
    storage = weight.view(-1) if shape.num_elements == weight.numel() else shape.storage()
    native = shape.at(storage)
    ops.pack(weight.data_ptr(), native, False, storage.data_ptr())
    return Weight(storage, native, num_outputs)


def pack_gate_up(ops: cpu_ops.Operations, gate_up: torch.Tensor) -> Experts:
    """gate_up [E, 2I, H] (gate rows first) -> panels of gate and up in turn. ``gate_up`` is given up."""
    _, both, hidden = gate_up.shape
    return _pack_experts(ops, gate_up, [0, hidden], 2 * _padded(both // 2))


def pack_down(ops: cpu_ops.Operations, down: torch.Tensor, bounds: Sequence[int]) -> Experts:
    """down [E, H, I] -> packed. ``down`` is given up."""
    return _pack_experts(ops, down, bounds, None)


def _pack_experts(
    ops: cpu_ops.Operations, weights: torch.Tensor, bounds: Sequence[int], interleaved_outputs: int | None
) -> Experts:
    """Expert by expert through a copy: in place where no expert grows, else what is packed is given back at once."""
    num_experts, num_outputs, num_inputs = weights.shape
    shape = _Packed(weights.dtype, interleaved_outputs or num_outputs, num_inputs, list(bounds))
    is_in_place = shape.num_elements == weights[0].numel()
    storage = weights.view(-1) if is_in_place else shape.storage(num_experts)
    for expert, part in enumerate(storage.view(num_experts, -1)):
        source = weights[expert].clone()
        native = _Packed(weights.dtype, num_outputs, num_inputs, list(bounds)).at(part)
        ops.pack(source.data_ptr(), native, interleaved_outputs is not None, part.data_ptr())
        if not is_in_place:
            memory.release(weights[expert])
    expert_bytes = shape.num_elements * weights.element_size()
    return Experts(Weight(storage, shape.at(storage), num_outputs), expert_bytes, num_experts, num_inputs)


@dataclass(frozen=True)
class _Packed:
    """The sizes of a packed weight."""

    dtype: torch.dtype
    num_outputs: int
    num_inputs: int
    bounds: list[int]

    @property
    def num_elements(self) -> int:
        weight = self.at(None)
        return int(weight.num_panels * weight.panel_elements)

    def storage(self, count: int = 1) -> torch.Tensor:
        return memory.empty(count * self.num_elements, dtype=self.dtype)

    def at(self, storage: torch.Tensor | None) -> cpu_ops.Weight:
        address = 0 if storage is None else storage.data_ptr()
        return cpu_ops.Weight(address, DTYPE_CODES[self.dtype], self.num_outputs, self.num_inputs, self.bounds)


def _padded(count: int) -> int:
    return ceil_div(count, int(cpu_ops.PANEL)) * int(cpu_ops.PANEL)
