"""The sorted list of pairs: against the specification, with ties, padded rows, one row and many."""

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.routing import Routing, empty_routing, route
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div
from tests.models.ops.gpu.comparison import normal


def tile(form: str, block_t: int) -> Tile:
    return Tile(num_warps=4, form=form, sizes={"t": block_t, "rows": 4} if form == "apart" else {"t": block_t})


def routed(logits: torch.Tensor, num_experts: int, top_k: int, form: str, block_t: int, live: int) -> Routing:
    routing = empty_routing(logits.shape[0], num_experts, top_k, block_t, logits.device)
    for tensor in (routing.slots, routing.tiles, routing.chosen):
        tensor.fill_(-(2**30))
    routing.weights.fill_(torch.nan)
    num_live = torch.tensor([live], dtype=torch.int32, device=logits.device)
    route(logits, num_live, num_experts, routing, tile(form, block_t))
    return routing


def used_tiles(routing: Routing) -> list[list[int]]:
    """Those before the first that is marked as none; all behind it must be marked, too."""
    tiles = routing.tiles.t().tolist()
    used = [tile for tile in tiles if tile[0] != -1]
    assert used == tiles[: len(used)]
    return used


def check(routing: Routing, logits: torch.Tensor, num_experts: int, live: int, block_t: int) -> None:
    rows, top_k = logits.shape[0], routing.top_k
    chosen: list[list[int]] = []
    if live:
        chosen, shares = reference.route(logits[:live, :num_experts].double().cpu(), top_k)
        torch.testing.assert_close(routing.weights[:live, :top_k].cpu(), shares.float(), rtol=1e-6, atol=0)
    assert (routing.weights[:live, top_k] == 1).all()
    pairs = sorted((chosen[row][place], row, place) for row in range(live) for place in range(top_k))
    pairs += [(num_experts, row, top_k) for row in range(live)]
    slots, found = routing.slots.tolist(), []
    tiles = used_tiles(routing)
    for expert, begin, end in tiles:
        assert 0 < end - begin <= block_t
        assert (begin >= rows * top_k) == (expert == num_experts)
        found += [(expert, *divmod(slot, top_k + 1)) for slot in slots[begin:end]]
    assert found == pairs
    # No two short tiles of one expert: as few tiles as there can be.
    counts = torch.bincount(torch.tensor([pair[0] for pair in pairs], dtype=torch.int64))
    assert len(tiles) == int(ceil_div(counts, block_t).sum())


# Every form with every number of rows, of experts and every dtype; not all together.
SMALL, ODD, MANY = (8, 2, 8), (12, 4, 4), (16, 8, 16)
CASES = [
    (torch.float32, "together", 1, SMALL),
    (torch.bfloat16, "together", 5, ODD),
    (torch.float32, "together", 16, ODD),
    (torch.bfloat16, "together", 16, MANY),
    (torch.float32, "apart", 5, MANY),
    (torch.float32, "apart", 33, ODD),
    (torch.bfloat16, "apart", 33, SMALL),
    (torch.bfloat16, "apart", 64, SMALL),
]


@pytest.mark.parametrize(("dtype", "form", "rows", "sizes"), CASES)
def test_it_agrees_with_the_specification(
    device: torch.device, dtype: torch.dtype, form: str, rows: int, sizes: tuple[int, int, int]
) -> None:
    num_experts, top_k, block_t = sizes
    wide = normal(device, dtype, rows, num_experts + 9)
    wide[:, num_experts:] = 99  # not the router's
    logits = wide[:, : num_experts + 5]
    check(routed(logits, num_experts, top_k, form, block_t, rows), logits, num_experts, rows, block_t)


@pytest.mark.parametrize("form", ["together", "apart"])
def test_equal_logits_go_to_the_lower_expert(device: torch.device, form: str) -> None:
    logits = torch.tensor([[1.0, 2, 2, 0, 2, -1, -1, 2], [-0.5] * 8, [0, -1, 0, -1, 0, -1, 0, -1.0]], device=device)
    check(routed(logits, 8, 3, form, 8, 3), logits, 8, 3, 8)


@pytest.mark.parametrize(
    ("form", "rows", "live"), [("together", 8, 5), ("together", 4, 0), ("apart", 40, 33), ("apart", 40, 0)]
)
def test_padded_rows_have_no_pairs_and_may_hold_anything(device: torch.device, form: str, rows: int, live: int) -> None:
    logits = normal(device, torch.bfloat16, rows, 16)
    logits[live:] = torch.nan
    check(routed(logits, 16, 4, form, 8, live), logits, 16, live, 8)


@pytest.mark.parametrize("form", ["together", "apart"])
def test_all_rows_choose_the_same_experts(device: torch.device, form: str) -> None:
    """The longest list of one expert there can be."""
    logits = torch.arange(16.0, device=device).repeat(16, 1)
    check(routed(logits, 16, 4, form, 4, 16), logits, 16, 16, 4)


@pytest.mark.parametrize("form", ["together", "apart"])
def test_nan_logits_stay_within_the_list(device: torch.device, form: str) -> None:
    """A row of NaN is wrong for that row alone: its experts exist, and no other pair moves."""
    logits = normal(device, torch.float32, 6, 8)
    logits[2] = torch.nan
    routing = routed(logits, 8, 2, form, 8, 6)
    tiles, slots = used_tiles(routing), routing.slots.tolist()
    assert sorted(slot for _, begin, end in tiles for slot in slots[begin:end]) == list(range(18))
    assert all(0 <= expert <= 8 for expert, _, _ in tiles)
    assert not routing.weights[[0, 1, 3, 4, 5]].isnan().any()
