"""x W^T in each of its ways against a float64 product, whatever this machine would choose."""

import pytest
import torch

from splitrank.models.ops.cpu import linear as ops
from splitrank.models.ops.cpu.linear import linear, pack, row_bucket

SHAPES = [(1, 64, 32), (2, 64, 33), (7, 192, 256), (9, 100, 96), (33, 4096, 320)]
EPSILON = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-23}  # of one rounding


def example(rows: int, out: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(out)
    x, weight = (torch.randn(size, columns, generator=generator, dtype=dtype) for size in (rows, out))
    return x, weight


def error_bound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One rounding of the result, and float32 sums of K products in any order (Higham, 3.5)."""
    exact, magnitude = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    return EPSILON[x.dtype] * exact.abs() + 2 * x.shape[1] * 2.0**-24 * magnitude


@pytest.fixture(params=[True, False], ids=["bf16 kernels", "no bf16 kernels"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Plays a CPU without bf16 arithmetic on one that has it; the other way round there is nothing to play."""
    has_kernels: bool = request.param
    if not has_kernels:
        monkeypatch.setattr(ops, "cpu_computes", lambda dtype: dtype is not torch.bfloat16)
    return has_kernels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_product(cpu: bool, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight = example(*shape, dtype)
    out = linear(x, pack(weight.clone()))
    assert (out.dtype, tuple(out.shape)) == (dtype, (shape[0], shape[1]))
    wrong = (out.double() - x.double() @ weight.double().T).abs() > error_bound(x, weight)
    assert not wrong.any()


def test_a_weight_is_packed_only_where_it_can_be_used(cpu: bool) -> None:
    _, weight = example(1, 192, 256, torch.bfloat16)
    is_packed = pack(weight).layout is torch._mkldnn  # type: ignore[attr-defined]
    assert is_packed == ops.cpu_computes(torch.bfloat16)


def test_blocks_of_a_widened_weight_are_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cpu_computes", lambda dtype: dtype is not torch.bfloat16)
    x, weight = (torch.randint(-3, 4, (size, 64), dtype=torch.bfloat16) for size in (3, 100))
    whole = linear(x, weight)  # small whole numbers: exact, in any order of summing
    monkeypatch.setattr(ops, "_BLOCK_ELEMENTS", 7 * 64)
    assert torch.equal(linear(x, weight), whole)


def test_row_buckets_are_few_and_large_enough() -> None:
    buckets = {row_bucket(rows) for rows in range(1, 513)}
    assert all(rows <= row_bucket(rows) <= max(8, 1.25 * rows) for rows in range(1, 513))
    assert len(buckets) == 8 + 4 * 6
