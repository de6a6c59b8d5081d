"""Projections against float64: both forms, odd widths and counts, norms in the prologue."""

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.projection import add_norm_project, gated_norm_project, project
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

FMA = Tile(num_warps=4, form="fma", sizes={"n": 4})
LIBRARY = Tile(num_warps=4, form="library")
DOT = Tile(num_warps=4, num_stages=2, form="dot", sizes={"n": 16, "k": 32, "t": 16})


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("rows", "columns", "width", "tile"),
    [
        (1, 64, 64, FMA),
        (2, 13, 72, FMA),
        (1, 5, 1, FMA),
        (1, 64, 64, DOT),
        (3, 37, 96, DOT),  # a part of a block of each
        (16, 32, 40, DOT),
        (33, 16, 64, DOT),  # three blocks of tokens
        (3, 37, 96, LIBRARY),
    ],
)
def test_project(device: torch.device, dtype: torch.dtype, rows: int, columns: int, width: int, tile: Tile) -> None:
    x, weight = normal(device, dtype, rows, width), normal(device, dtype, columns, width)
    out = nan(device, dtype, rows, columns)
    project(x, weight, out, tile)
    assert_near(out, x.double() @ weight.double().t())


def test_no_row_leaks_into_another(device: torch.device) -> None:
    """A padded row may hold anything."""
    x, weight = normal(device, torch.float32, 5, 64), normal(device, torch.float32, 32, 64)
    x[3] = torch.nan
    out = nan(device, torch.float32, 5, 32)
    project(x, weight, out, DOT)
    rows = [0, 1, 2, 4]
    assert_near(out[rows], x[rows].double() @ weight.double().t())
    assert out[3].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "parts", "width"), [(1, 1, 64), (2, 9, 72)])
def test_add_norm_project(device: torch.device, dtype: torch.dtype, rows: int, parts: int, width: int) -> None:
    residual, hidden = normal(device, dtype, rows, width), normal(device, dtype, rows, parts, width)
    norm_weight, weight = normal(device, dtype, width, scale=0.2), normal(device, dtype, 21, width)
    out, (residual_out, normed) = nan(device, dtype, rows, 21), nan(device, dtype, 2, rows, width)
    add_norm_project(residual, hidden, norm_weight, weight, out, residual_out, normed, 1e-6, FMA)
    assert_near(residual_out, residual.double() + hidden.double().sum(1))
    expected = reference.rms_norm(residual_out.double(), 1 + norm_weight.double(), 1e-6)
    assert_near(normed, expected)
    assert_near(out, expected @ weight.double().t())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 8, 16), (2, 3, 32)])
def test_gated_norm_project(device: torch.device, dtype: torch.dtype, rows: int, heads: int, dim: int) -> None:
    x, wide = normal(device, dtype, rows, heads, dim), normal(device, dtype, rows, heads * dim + 16)
    norm_weight, weight = normal(device, torch.float32, dim), normal(device, dtype, 21, heads * dim)
    out, gate = nan(device, dtype, rows, 21), wide[:, 16:]
    gated_norm_project(x, gate, norm_weight, weight, out, 1e-6, FMA)
    values = reference.rms_norm(x.double(), norm_weight.double(), 1e-6) * reference.silu(gate.double().view(x.shape))
    assert_near(out, values.flatten(1) @ weight.double().t())
