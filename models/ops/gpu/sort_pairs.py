"""Routing of many rows: each row's experts, and all (row, expert) pairs sorted by expert with a stable counting sort.

Legend: T rows, E experts, k experts a row, B blocks of rows, M tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div, next_power_of_2

TILE_ROWS = 128
_EXPERTS = 16  # experts that one program counts


class SortedPairs(NamedTuple):
    """Pair t k + j is row t and its j-th likeliest expert."""

    experts: torch.Tensor  # [T, k] int32, likeliest first; of equal ones the lower number
    weights: torch.Tensor  # [T, k] float32, which sum to 1
    order: torch.Tensor  # [T k] int32: the pairs, by expert, then by number
    tiles: torch.Tensor  # [M, 3] int32: expert, first and last + 1 of up to 128 places in ``order``; expert -1: none


def sort_pairs(logits: torch.Tensor, top_k: int, tile: Tile) -> SortedPairs:
    """logits [T, E], rows may have gaps. Three launches. Specification: ``reference.route``."""
    rows, num_experts = logits.shape
    pairs, block, padded = rows * top_k, tile["t"], next_power_of_2(num_experts)
    blocks, num_tiles = ceil_div(rows, block), pairs // TILE_ROWS + min(num_experts, pairs)

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=logits.device)

    experts, order, tiles = integers(rows, top_k), integers(pairs), integers(num_tiles, 3)
    weights = torch.empty(rows, top_k, device=logits.device)
    counts, places, totals = integers(blocks, padded), integers(blocks, padded), integers(padded)
    sizes = {"NUM_EXPERTS": num_experts, "ALL_EXPERTS": padded}
    top = {"TOP_K": top_k, "ALL_TOP": next_power_of_2(top_k), "BLOCK_T": block}
    launch(
        _choose_experts,
        (blocks,),
        tile,
        logits=Operand(logits, (rows, num_experts), logits.dtype, strided=True),
        stride=logits.stride(0),
        experts=experts,
        weights=weights,
        counts=counts,
        rows=rows,
        **sizes,
        **top,
    )
    launch(
        _place_blocks,
        (ceil_div(padded, _EXPERTS),),
        tile,
        counts=counts,
        places=places,
        totals=totals,
        blocks=blocks,
        ALL_EXPERTS=padded,
        BLOCK_E=_EXPERTS,
        BLOCK_B=256,
    )
    launch(
        _place_pairs,
        (blocks + 1,),
        tile,
        experts=experts,
        places=places,
        totals=totals,
        order=order,
        tiles=tiles,
        rows=rows,
        num_tiles=num_tiles,
        TILE_ROWS=TILE_ROWS,
        ALL_EXPERTS=padded,
        **top,
    )
    return SortedPairs(experts, weights, order, tiles)


@triton.jit(do_not_specialize=["rows"])
def _choose_experts(
    logits,
    stride,
    experts,
    weights,
    counts,
    rows,
    NUM_EXPERTS: tl.constexpr,
    ALL_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    ALL_TOP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_T rows: their experts, weights, and how many of the rows have chosen each expert."""
    wait_for_previous(PDL)
    block = tl.program_id(0)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    i = tl.arange(0, ALL_EXPERTS)
    real = (t < rows)[:, None] & (i < NUM_EXPERTS)[None, :]
    row = logits + t.to(tl.int64)[:, None] * stride
    # Integers that sort as the logits do, and then by number. -0 becomes 0 by the addition.
    x = tl.load(row + i[None, :], mask=real, other=0.0).to(tl.float32) + 0.0
    keys = x.to(tl.int32, bitcast=True)
    keys = tl.where(keys < 0, keys ^ 0x7FFFFFFF, keys)
    keys = keys.to(tl.int64) if logits.dtype.element_ty == tl.float32 else keys >> 16
    keys = keys * ALL_EXPERTS + (ALL_EXPERTS - 1 - i)[None, :]
    lowest = -(2**62) if logits.dtype.element_ty == tl.float32 else -(2**31)
    taken = tl.full([1, 1], lowest, keys.dtype)
    keys = tl.where(real, keys, taken + 1)
    j = tl.arange(0, ALL_TOP)[None, :]
    chosen = tl.zeros([BLOCK_T, ALL_TOP], tl.int32)
    for place in tl.static_range(TOP_K):
        best = tl.max(keys, 1)[:, None]
        keys = tl.where(keys == best, taken, keys)
        number = (ALL_EXPERTS - 1 - (best & (ALL_EXPERTS - 1))).to(tl.int32)
        chosen = tl.where(j == place, number, chosen)
    # Rows behind the last have nothing but equal keys: they take all of them at once, and count for nobody.
    counted = (keys == taken) & (t < rows)[:, None]
    tl.store(counts + block * ALL_EXPERTS + i, tl.sum(counted.to(tl.int32), 0))
    here = (t < rows)[:, None] & (j < TOP_K)
    x = tl.load(row + chosen, mask=here, other=-1e30).to(tl.float32)
    share = tl.exp(x - tl.max(x, 1)[:, None])
    to = t[:, None] * TOP_K + j
    tl.store(experts + to, chosen, mask=here)
    tl.store(weights + to, share / tl.sum(share, 1)[:, None], mask=here)


@triton.jit(do_not_specialize=["blocks"])
def _place_blocks(
    counts,
    places,
    totals,
    blocks,
    ALL_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_E experts: how many pairs of each lie in the blocks before a block, and in all."""
    wait_for_previous(PDL)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_E], tl.int32)
    for b0 in range(0, blocks, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        at = b[:, None] * ALL_EXPERTS + e[None, :]
        ok = (b < blocks)[:, None] & (e < ALL_EXPERTS)[None, :]
        count = tl.load(counts + at, mask=ok, other=0)
        tl.store(places + at, total[None, :] + tl.cumsum(count, 0) - count, mask=ok)
        total += tl.sum(count, 0)
    tl.store(totals + e, total, mask=e < ALL_EXPERTS)


@triton.jit(do_not_specialize=["rows", "num_tiles"])
def _place_pairs(
    experts,
    places,
    totals,
    order,
    tiles,
    rows,
    num_tiles,
    TILE_ROWS: tl.constexpr,
    ALL_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    ALL_TOP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    """The pairs of BLOCK_T rows go to their places; the last program writes the tiles."""
    wait_for_previous(PDL)
    block = tl.program_id(0)
    i = tl.arange(0, ALL_EXPERTS)
    total = tl.load(totals + i)
    if block == tl.num_programs(0) - 1:
        _write_tiles(tiles, i, total, num_tiles, TILE_ROWS)
        return
    p = tl.arange(0, BLOCK_T * ALL_TOP)
    t = block * BLOCK_T + p // ALL_TOP
    ok = (t < rows) & (p % ALL_TOP < TOP_K)
    pair = t * TOP_K + p % ALL_TOP
    e = tl.load(experts + pair, mask=ok, other=-1)
    same = tl.load(experts + pair, mask=ok, other=-1)  # again, in another layout
    inside = tl.sum(((e[:, None] == same[None, :]) & (p[None, :] < p[:, None])).to(tl.int32), 1)
    start = tl.gather(tl.cumsum(total, 0) - total, tl.maximum(e, 0), 0)
    to = start + tl.load(places + block * ALL_EXPERTS + e, mask=ok, other=0) + inside
    tl.store(order + to, pair, mask=ok)


@triton.jit
def _write_tiles(tiles, i, total, num_tiles, TILE_ROWS: tl.constexpr):
    """Each expert's run in tiles, and -1 behind the last."""
    stop = tl.cumsum(total, 0)
    count = (total + TILE_ROWS - 1) // TILE_ROWS
    last = tl.cumsum(count, 0)
    for n in range(tl.max(count, 0)):
        begin = stop - total + n * TILE_ROWS
        to = tiles + 3 * (last - count + n)
        tl.store(to, i, mask=n < count)
        tl.store(to + 1, begin, mask=n < count)
        tl.store(to + 2, tl.minimum(begin + TILE_ROWS, stop), mask=n < count)
    for m0 in range(tl.max(last, 0), num_tiles, 256):
        m = m0 + tl.arange(0, 256)
        tl.store(tiles + 3 * m, tl.full([256], -1, tl.int32), mask=m < num_tiles)
