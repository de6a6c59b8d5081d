"""Top-k routing on the device, and the list of (token, expert) pairs sorted by expert that the expert kernels walk.

Equal logits go to the lower expert. A token's experts keep their order of likelihood, its shared expert comes last.
Each pair has a slot, token * (k + 1) + place, and outputs are summed by slot, so a token's sum does not depend on its
neighbours. Legend: T tokens, E experts, k experts a token.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div, next_power_of_2

_FEWEST_PAIRS = 256  # of a histogram: no thread of a block is without one


@dataclass(frozen=True)
class Routing:
    """What ``route`` writes. An expert's pairs lie together, tokens ascending; the shared expert's start at T k."""

    slots: torch.Tensor  # [T * (k + 1)] int32, by place in the list; what is in no tile is undefined
    weights: torch.Tensor  # [T, k + 1] float32, by slot; each token's first k sum to 1, the shared expert's is 1
    tiles: torch.Tensor  # [3, max tiles] int32: expert (E: the shared one, -1: no tile), first place, end of places
    chosen: torch.Tensor  # [T, k] int32, scratch of many rows

    @property
    def max_tiles(self) -> int:
        return self.tiles.shape[1]

    @property
    def top_k(self) -> int:
        return self.chosen.shape[1]


def most_tiles(rows: int, num_experts: int, top_k: int, block_t: int) -> int:
    """An expert's last tile may be short, and each expert has at least one pair or no tile."""
    pairs = rows * top_k
    routed = min(pairs, num_experts + pairs // block_t) if block_t < rows else min(pairs, num_experts)
    return routed + ceil_div(rows, block_t)


def empty_routing(rows: int, num_experts: int, top_k: int, block_t: int, device: torch.device) -> Routing:
    """Storage for ``rows`` tokens in tiles of ``block_t``."""
    max_tiles = most_tiles(rows, num_experts, top_k, block_t)

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    weights = torch.empty((rows, top_k + 1), dtype=torch.float32, device=device)
    slots, tiles = integers(rows * (top_k + 1)), integers(3, max_tiles)
    return Routing(slots, weights, tiles, integers(rows, top_k))


@triton.jit
def routing_keys(logits, expert, inside, NUM_EXPERTS: tl.constexpr):
    """Integers that sort as the logits do, the lower expert first among equals; -1 where not inside."""
    x = tl.load(logits, mask=inside, other=0.0)
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483648
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        bits = tl.where(bits < 0, bits ^ 0x7FFF, bits) + 32768
    return tl.where(inside, bits * NUM_EXPERTS + (NUM_EXPERTS - 1 - expert), -1)


@triton.jit
def key_expert(key, NUM_EXPERTS: tl.constexpr):
    return (NUM_EXPERTS - 1 - key % NUM_EXPERTS).to(tl.int32)


@triton.jit
def key_logit(key, NUM_EXPERTS: tl.constexpr):
    """The logit in float32."""
    if key.dtype == tl.int64:
        bits = (key // NUM_EXPERTS - 2147483648).to(tl.int32)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    else:
        bits = key // NUM_EXPERTS - 32768
        bits = tl.where(bits < 0, bits ^ 0x7FFF, bits) << 16  # bf16 is the upper half of float32
    return bits.to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["num_rows"])
def _route_together(
    logits,
    num_live,
    slots,
    weights,
    tiles,
    num_rows,
    max_tiles,
    logits_stride,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Few rows: one program has the matrix of rows and experts in registers."""
    row = tl.arange(0, BLOCK_ROWS)
    expert = tl.arange(0, BLOCK_E)
    live = row < tl.minimum(tl.load(num_live), num_rows)
    wait_for_previous(PDL)
    inside = live[:, None] & (expert < NUM_EXPERTS)[None, :]
    keys = routing_keys(logits + row[:, None] * logits_stride + expert[None, :], expert[None, :], inside, NUM_EXPERTS)
    best = key_logit(tl.max(keys, 1), NUM_EXPERTS)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    share = tl.zeros([BLOCK_ROWS, BLOCK_E], tl.float32)
    place = tl.full([BLOCK_ROWS, BLOCK_E], -1, tl.int32)
    for i in tl.static_range(TOP_K):
        top = tl.max(keys, 1)
        hit = (keys == top[:, None]) & live[:, None]
        mass = tl.exp(key_logit(top, NUM_EXPERTS) - best)
        total += mass
        share = tl.where(hit, mass[:, None], share)
        place = tl.where(hit, i, place)
        keys = tl.where(hit, -1, keys)
    chosen = (place >= 0).to(tl.int32)
    count = tl.sum(chosen, 0)
    begin = tl.cumsum(count, 0) - count
    at = begin[None, :] + tl.cumsum(chosen, 0) - 1
    slot = row[:, None] * (TOP_K + 1) + place
    tl.store(slots + at, slot, mask=place >= 0)
    tl.store(weights + slot, share / total[:, None], mask=place >= 0)
    used = tl.cdiv(count, BLOCK_T)
    first = tl.cumsum(used, 0) - used
    for i in tl.static_range(BLOCK_ROWS // BLOCK_T if BLOCK_ROWS > BLOCK_T else 1):
        where = begin + i * BLOCK_T
        _store_tile(tiles, max_tiles, first + i, expert, where, begin + count, i < used, BLOCK_T)
    routed = tl.sum(used, 0)
    _add_shared(slots, weights, tiles, routed, live, num_rows, max_tiles, NUM_EXPERTS, TOP_K, BLOCK_T, BLOCK_TILES)


@triton.jit
def _store_tile(tiles, max_tiles, tile, expert, begin, end, exists, BLOCK_T: tl.constexpr):
    tl.store(tiles + tile, expert, mask=exists)
    tl.store(tiles + max_tiles + tile, begin, mask=exists)
    tl.store(tiles + 2 * max_tiles + tile, tl.minimum(begin + BLOCK_T, end), mask=exists)


@triton.jit
def _add_shared(
    slots,
    weights,
    tiles,
    routed_tiles,
    live,
    num_rows,
    max_tiles,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """The shared expert's pairs, one a live row, its tiles behind all others, and what is left of the list of tiles."""
    row = tl.arange(0, live.shape[0])
    begin = num_rows * TOP_K
    num_live = tl.sum(live.to(tl.int32), 0)
    tl.store(slots + begin + row, row * (TOP_K + 1) + TOP_K, mask=live)
    tl.store(weights + row * (TOP_K + 1) + TOP_K, 1.0, mask=live)
    first = begin + row * BLOCK_T
    expert = tl.full([live.shape[0]], NUM_EXPERTS, tl.int32)
    used = tl.cdiv(num_live, BLOCK_T)
    _store_tile(tiles, max_tiles, routed_tiles + row, expert, first, begin + num_live, row < used, BLOCK_T)
    tile = tl.arange(0, BLOCK_TILES)
    tl.store(tiles + tile, -1, mask=(tile >= routed_tiles + used) & (tile < max_tiles))


@triton.jit(do_not_specialize=["num_rows"])
def _choose(
    logits,
    num_live,
    chosen,
    weights,
    num_rows,
    logits_stride,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Many rows, first launch: each row's experts and their shares. A row that does not live has expert E."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    expert = tl.arange(0, BLOCK_E)
    live = row < tl.load(num_live)
    wait_for_previous(PDL)
    inside = (live & (row < num_rows))[:, None] & (expert < NUM_EXPERTS)[None, :]
    keys = routing_keys(logits + row[:, None] * logits_stride + expert[None, :], expert[None, :], inside, NUM_EXPERTS)
    best = key_logit(tl.max(keys, 1), NUM_EXPERTS)
    place = tl.arange(0, BLOCK_K)
    masses = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    experts = tl.full([BLOCK_ROWS, BLOCK_K], NUM_EXPERTS, tl.int32)
    for i in tl.static_range(TOP_K):
        top = tl.max(keys, 1)
        keys = tl.where(keys == top[:, None], -1, keys)
        mass = tl.exp(key_logit(top, NUM_EXPERTS) - best)
        masses = tl.where((place == i)[None, :], mass[:, None], masses)
        experts = tl.where((place == i)[None, :] & live[:, None], key_expert(top, NUM_EXPERTS)[:, None], experts)
    stored = (row < num_rows)[:, None] & (place < TOP_K)[None, :]
    tl.store(chosen + row[:, None] * TOP_K + place[None, :], experts, mask=stored)
    shares = masses / tl.sum(masses, 1)[:, None]
    tl.store(weights + row[:, None] * (TOP_K + 1) + place[None, :], shares, mask=stored)


@triton.jit(do_not_specialize=["num_rows", "max_tiles"])
def _place(
    chosen,
    num_live,
    slots,
    weights,
    tiles,
    num_rows,
    max_tiles,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_BINS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Many rows, second launch: a program an expert counts all pairs and places its own; the last adds the shared."""
    mine = tl.program_id(0)
    pair = tl.arange(0, BLOCK_PAIRS)
    bins = tl.arange(0, BLOCK_BINS)
    row = tl.arange(0, BLOCK_ROWS)
    live = row < tl.minimum(tl.load(num_live), num_rows)
    wait_for_previous(PDL)
    expert = tl.load(chosen + pair, mask=pair < num_rows * TOP_K, other=NUM_EXPERTS)
    counts = tl.histogram(expert, BLOCK_BINS)
    before = bins < mine
    begin = tl.sum(tl.where(before, counts, 0), 0)
    first = tl.sum(tl.where(before, tl.cdiv(counts, BLOCK_T), 0), 0)
    if mine == NUM_EXPERTS:
        _add_shared(slots, weights, tiles, first, live, num_rows, max_tiles, NUM_EXPERTS, TOP_K, BLOCK_T, BLOCK_TILES)
    else:
        own = (expert == mine).to(tl.int32)
        count = tl.sum(own, 0)
        slot = pair // TOP_K * (TOP_K + 1) + pair % TOP_K
        tl.store(slots + begin + tl.cumsum(own, 0) - 1, slot, mask=own > 0)
        tile = tl.arange(0, BLOCK_ROWS)
        here = tl.full([BLOCK_ROWS], 0, tl.int32) + mine
        exists = tile * BLOCK_T < count
        _store_tile(tiles, max_tiles, first + tile, here, begin + tile * BLOCK_T, begin + count, exists, BLOCK_T)


def route(logits: torch.Tensor, num_live: torch.Tensor, num_experts: int, routing: Routing, tile: Tile) -> None:
    """logits [T, >= E] (the first E columns are the router's) -> ``routing``, made by ``empty_routing``.

    ``num_live`` [1] int32: rows from there on are padding, have no pairs and count for nobody. ``tile["t"]`` must be
    the one that ``routing`` was made for. Form ``together``: one launch for few rows; ``apart``: two, for many.
    """
    rows, top_k, block_rows = logits.shape[0], routing.top_k, next_power_of_2(logits.shape[0])
    operands = {
        "num_live": Operand(num_live, (1,), torch.int32),
        "weights": Operand(routing.weights, (rows, top_k + 1), torch.float32),
    }
    lists = {
        "slots": Operand(routing.slots, (rows * (top_k + 1),), torch.int32),
        "tiles": Operand(routing.tiles, (3, routing.max_tiles), torch.int32),
    }
    read = {
        "logits": Operand(logits, tuple(logits.shape), logits.dtype, strided=True),
        "logits_stride": logits.stride(0),
    }
    sizes = {"NUM_EXPERTS": num_experts, "TOP_K": top_k, "num_rows": rows}
    placed = {"max_tiles": routing.max_tiles, "BLOCK_T": tile["t"], "BLOCK_ROWS": block_rows}
    placed["BLOCK_TILES"] = next_power_of_2(routing.max_tiles)
    block_e = next_power_of_2(num_experts)
    if tile.form == "together":
        launch(_route_together, (1,), tile, BLOCK_E=block_e, **read, **operands, **lists, **sizes, **placed)
        return
    chosen = Operand(routing.chosen, (rows, top_k), torch.int32)
    grid, choosing = (
        (ceil_div(rows, tile["rows"]),),
        {"BLOCK_ROWS": tile["rows"], "BLOCK_K": next_power_of_2(top_k)},
    )
    launch(_choose, grid, tile, chosen=chosen, BLOCK_E=block_e, **read, **operands, **sizes, **choosing)
    pairs = max(_FEWEST_PAIRS, next_power_of_2(rows * top_k))
    blocks = {"BLOCK_BINS": 2 * block_e, "BLOCK_PAIRS": pairs}
    launch(_place, (num_experts + 1,), tile, chosen=chosen, **operands, **lists, **sizes, **placed, **blocks)
