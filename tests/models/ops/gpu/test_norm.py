"""Norms against the specification: odd widths, one row and many, views, dtypes."""

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.norm import add_norm, gated_norm, sum_parts
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

NORM, HEADS = Tile(num_warps=4), Tile(num_warps=4, sizes={"heads": 4})


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "parts", "width"), [(1, 1, 64), (3, 9, 256), (17, 2, 72), (2, 3, 1)])
def test_add_norm(device: torch.device, dtype: torch.dtype, rows: int, parts: int, width: int) -> None:
    residual, hidden = normal(device, dtype, rows, width), normal(device, dtype, rows, parts, width)
    weight = normal(device, dtype, width, scale=0.2)
    residual_out, normed = nan(device, dtype, rows, width), nan(device, dtype, rows, width)
    add_norm(residual, hidden, weight, residual_out, normed, 1e-6, NORM)
    total = (residual.double() + hidden.double().sum(1).to(dtype).double()).to(dtype)
    assert_near(residual_out, total)
    assert_near(normed, reference.rms_norm(residual_out.double(), 1 + weight.double(), 1e-6))


def test_the_residual_may_be_written_in_place(device: torch.device) -> None:
    residual, hidden = normal(device, torch.float32, 2, 64), normal(device, torch.float32, 2, 1, 64)
    expected, normed = residual + hidden[:, 0], torch.empty_like(residual)
    add_norm(residual, hidden, torch.zeros(64, device=device), residual, normed, 1e-6, NORM)
    assert_near(residual, expected)


@pytest.mark.parametrize("parts", [1, 9])
def test_parts_summed_at_a_stage_border_are_the_same_bits(device: torch.device, parts: int) -> None:
    """add_norm of parts, and sum_parts before and add_norm of the sum after the border."""
    dtype = torch.bfloat16
    residual, hidden = normal(device, dtype, 3, 96), normal(device, dtype, 3, parts, 96)
    weight, total = normal(device, dtype, 96), nan(device, dtype, 3, 96)
    whole, split = ([nan(device, dtype, 3, 96) for _ in range(2)] for _ in range(2))
    add_norm(residual, hidden, weight, *whole, 1e-6, NORM)
    sum_parts(hidden, total, NORM)
    add_norm(residual, total[:, None], weight, *split, 1e-6, NORM)
    assert all(torch.equal(a, b) for a, b in zip(whole, split, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 32, 128), (5, 6, 16), (2, 1, 64)])
def test_gated_norm(device: torch.device, dtype: torch.dtype, rows: int, heads: int, dim: int) -> None:
    x, wide = normal(device, dtype, rows, heads, dim), normal(device, dtype, rows, heads * dim + 24)
    weight, out = normal(device, torch.float32, dim), nan(device, dtype, rows, heads, dim)
    gate = wide[:, 8 : 8 + heads * dim]
    gated_norm(x, gate, weight, out, 1e-6, HEADS)
    normed = reference.rms_norm(x.double(), weight.double(), 1e-6)
    assert_near(out, normed * reference.silu(gate.double().view(x.shape)))
