"""Routing, sorting and the grouped products of many rows, against the specification."""

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.packing import interleave_gate_up
from splitrank.models.ops.gpu.sort_pairs import TILE_ROWS, SortedPairs, sort_pairs
from splitrank.models.ops.gpu.sorted_experts import sorted_down, sorted_up
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

SORT = Tile(num_warps=4, sizes={"t": 16})
PRODUCT = Tile(num_warps=4, sizes={"n": 64, "k": 32})
EVEN, RAGGED = (64, 32), (72, 48)  # hidden, inner


def assert_sorted(pairs: SortedPairs, num_experts: int) -> None:
    """By definition: a stable sort by expert, and tiles that cover each expert's run in order."""
    flat = pairs.experts.flatten().long()
    expected = flat.sort(stable=True)
    assert torch.equal(pairs.order.long(), expected.indices)
    tiles = [tile for tile in pairs.tiles.tolist() if tile[0] >= 0]
    counts = torch.bincount(flat, minlength=num_experts).tolist()
    stops = torch.tensor(counts).cumsum(0).tolist()
    assert tiles == [
        [expert, first, min(first + TILE_ROWS, stop)]
        for expert, (count, stop) in enumerate(zip(counts, stops, strict=True))
        for first in range(stop - count, stop, TILE_ROWS)
    ]


@pytest.mark.parametrize(
    ("dtype", "rows", "num_experts", "top_k"),
    [
        (torch.bfloat16, 1, 256, 8),
        (torch.float32, 63, 7, 3),
        (torch.bfloat16, 64, 8, 1),
        (torch.float32, 65, 256, 8),
        (torch.float32, 200, 4, 4),  # two tiles of each expert
        (torch.bfloat16, 130, 7, 3),
    ],
)
def test_routing(device: torch.device, dtype: torch.dtype, rows: int, num_experts: int, top_k: int) -> None:
    logits = normal(device, dtype, rows, num_experts + 5)[:, :num_experts]
    pairs = sort_pairs(logits, top_k, SORT)
    chosen, shares = reference.route(logits.double(), top_k)
    assert pairs.experts.tolist() == chosen
    assert_near(pairs.weights, shares, 1e-6)
    assert_sorted(pairs, num_experts)


def test_equal_logits_go_to_the_lower_number(device: torch.device) -> None:
    logits = torch.zeros(3, 16, device=device, dtype=torch.bfloat16)
    logits[1] = -torch.zeros(())
    logits[2, 3:] = -1.0
    logits[0, ::2] = -0.0  # equal to 0
    assert sort_pairs(logits, 4, SORT).experts.tolist() == [[0, 1, 2, 3]] * 3


def test_all_rows_may_choose_one_expert(device: torch.device) -> None:
    logits = torch.zeros(300, 8, device=device, dtype=torch.bfloat16)
    logits[:, 5] = 3.0
    pairs = sort_pairs(logits, 1, SORT)
    assert (pairs.experts == 5).all()
    assert_sorted(pairs, 8)


def test_extreme_and_negative_logits(device: torch.device) -> None:
    logits = torch.tensor([[-3e38, 3e38, -1.0, 1e-30, -1e-30, 0.0, -torch.inf, 2.0]], device=device)
    for dtype in TOLERANCE:
        assert sort_pairs(logits.to(dtype), 6, SORT).experts.tolist() == [[1, 7, 3, 5, 4, 2]]


@pytest.mark.parametrize(
    ("dtype", "rows", "hidden", "inner"),
    [
        (torch.float32, 1, *RAGGED),
        (torch.bfloat16, 200, *EVEN),
        (torch.float32, 65, *EVEN),
        (torch.bfloat16, 65, *RAGGED),
        (torch.float32, 200, *RAGGED),  # more than half a tile of an expert
    ],
)
def test_experts(device: torch.device, dtype: torch.dtype, rows: int, hidden: int, inner: int) -> None:
    num_experts, top_k = 5, 2
    x, logits = normal(device, dtype, rows, hidden), normal(device, dtype, rows, num_experts, scale=2.0)
    gate_up = normal(device, dtype, num_experts, 2 * inner, hidden, scale=hidden**-0.5)
    down = normal(device, dtype, num_experts, hidden, inner, scale=inner**-0.5)
    pairs = sort_pairs(logits, top_k, SORT)
    act = sorted_up(x, interleave_gate_up(gate_up), pairs, PRODUCT)
    out = nan(device, dtype, rows, top_k + 1, hidden)
    sorted_down(act, down, pairs, out, PRODUCT)
    wide = [tensor.double().cpu() for tensor in (x, pairs.weights, gate_up, down)]
    expected = reference.routed_experts(wide[0], pairs.experts.cpu(), *wide[1:])
    assert out[:, top_k].isnan().all()  # another launch's part
    assert_near(out[:, :top_k].double().sum(1), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 64, 129])
def test_a_pair_has_the_same_bits_wherever_it_stands(device: torch.device, rows: int) -> None:
    """Rows behind others in one expert's tiles, and each row alone."""
    dtype, hidden, inner = torch.bfloat16, 64, 32
    x, logits = normal(device, dtype, rows, hidden), torch.zeros(rows, 2, device=device, dtype=dtype)
    gate_up = normal(device, dtype, 2, 2 * inner, hidden, scale=0.1)
    down = normal(device, dtype, 2, hidden, inner, scale=0.1)
    together = nan(device, dtype, rows, 1, hidden)
    pairs = sort_pairs(logits, 1, SORT)
    sorted_down(sorted_up(x, gate_up, pairs, PRODUCT), down, pairs, together, PRODUCT)
    for row in (0, rows // 2, rows - 1):
        alone = nan(device, dtype, 1, 1, hidden)
        pairs = sort_pairs(logits[:1], 1, SORT)
        sorted_down(sorted_up(x[row : row + 1], gate_up, pairs, PRODUCT), down, pairs, alone, PRODUCT)
        assert torch.equal(together[row], alone[0])
