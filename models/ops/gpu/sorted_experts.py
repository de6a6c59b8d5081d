"""The routed experts of many rows as two grouped matrix products over the pairs sorted by expert.

A tile is up to 128 pairs of one expert; one of 64 or fewer takes a branch of half the rows, unless the launch is exact.
A pair's bits do not depend on its place in a tile. Legend: T rows, k experts a row, E experts, I inner size, H hidden
size, M tiles.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.numerics import narrow, quick_sigmoid
from splitrank.models.ops.gpu.primitives import dot, wait_for_previous
from splitrank.models.ops.gpu.sort_pairs import TILE_ROWS, SortedPairs
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div


def sorted_up(x: torch.Tensor, gate_up: torch.Tensor, pairs: SortedPairs, tile: Tile) -> torch.Tensor:
    """x [T, H], gate_up [E, 2 I, H] (rows 2 i: gate, 2 i + 1: up) -> silu(gate) * up of the sorted pairs [T k, I].

    Rows are gathered as they are loaded. H elements must be a multiple of 16 bytes.
    """
    (rows, hidden), (num_experts, double, _), top_k = x.shape, gate_up.shape, pairs.weights.shape[1]
    out = x.new_empty(rows * top_k, double // 2)
    launch(
        _sorted_up,
        (pairs.tiles.shape[0] * ceil_div(double, tile["n"]),),
        tile,
        x=Operand(x, (rows, hidden), x.dtype),
        weight=Operand(gate_up, (num_experts, double, hidden), x.dtype, block=(tile["n"], tile["k"]), row_dims=2),
        order=Operand(pairs.order, (rows * top_k,), torch.int32),
        tiles=pairs.tiles,
        out=out,
        TOP_K=top_k,
        HIDDEN=hidden,
        DOUBLE=double,
        BLOCK_M=TILE_ROWS,
        BLOCK_N=tile["n"],
        BLOCK_K=tile["k"],
        HALVES=not tile.exact,
    )
    return out


def sorted_down(
    act: torch.Tensor, down: torch.Tensor, pairs: SortedPairs, out: torch.Tensor, tile: Tile, shards: int = 1
) -> None:
    """act [T k, I] from ``sorted_up``, down [E, H, I] -> out [T, at least k, H]: pair (t, j), weighted, to out[t, j].

    With ``shards``, those of each run of inner columns, one run after the other in out's second dim, equally far apart.
    I elements must be a multiple of 16 bytes.
    """
    (num_experts, hidden, inner), (rows, parts, _), top_k = down.shape, out.shape, pairs.weights.shape[1]
    of_shard = inner // shards
    block_k = tile["k"] if shards == 1 else min(tile["k"], of_shard & -of_shard)  # no block reaches into the next
    launch(
        _sorted_down,
        (pairs.tiles.shape[0] * ceil_div(hidden, tile["n"]),),
        tile,
        act=Operand(act, (rows * top_k, inner), act.dtype, block=(TILE_ROWS, block_k)),
        half=Operand(act, (rows * top_k, inner), act.dtype, block=(TILE_ROWS // 2, block_k)),
        weight=Operand(down, (num_experts, hidden, inner), act.dtype, block=(tile["n"], block_k), row_dims=2),
        order=Operand(pairs.order, (rows * top_k,), torch.int32),
        shares=Operand(pairs.weights, (rows, top_k), torch.float32),
        tiles=pairs.tiles,
        out=Operand(out, (rows, parts, hidden), act.dtype),
        TOP_K=top_k,
        PARTS=parts,
        HIDDEN=hidden,
        INNER=inner,
        SHARDS=shards,
        BLOCK_M=TILE_ROWS,
        BLOCK_N=tile["n"],
        BLOCK_K=block_k,
        HALVES=not tile.exact,
    )


@triton.jit
def _sorted_up(
    x,
    weight,
    order,
    tiles,
    out,
    TOP_K: tl.constexpr,
    HIDDEN: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HALVES: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    columns: tl.constexpr = (DOUBLE + BLOCK_N - 1) // BLOCK_N
    tile = tiles + tl.program_id(0) // columns * 3
    column = tl.program_id(0) % columns * BLOCK_N
    expert = tl.load(tile)
    if expert >= 0:
        first = tl.load(tile + 1)
        stop = tl.load(tile + 2)
        if HALVES and stop - first <= BLOCK_M // 2:
            _up_tile(
                x,
                weight,
                order,
                out,
                expert,
                first,
                stop,
                column,
                TOP_K,
                HIDDEN,
                DOUBLE,
                BLOCK_M // 2,
                BLOCK_N,
                BLOCK_K,
            )
        else:
            _up_tile(
                x, weight, order, out, expert, first, stop, column, TOP_K, HIDDEN, DOUBLE, BLOCK_M, BLOCK_N, BLOCK_K
            )


@triton.jit
def _up_tile(
    x,
    weight,
    order,
    out,
    expert,
    first,
    stop,
    column,
    TOP_K: tl.constexpr,
    HIDDEN: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = first + tl.arange(0, BLOCK_M)
    ok = m < stop
    row = tl.load(order + m, mask=ok, other=0) // TOP_K
    at = x + row.to(tl.int64)[:, None] * HIDDEN
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k0 in range(0, HIDDEN, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        a = tl.load(at + k) if HIDDEN % BLOCK_K == 0 else tl.load(at + k, mask=k < HIDDEN, other=0.0)
        acc = dot(a, weight.load([expert * DOUBLE + column, k0]).T, acc)
    # Gate and up of a pair are neighbours, in one thread.
    gate, up = tl.split(tl.reshape(acc, [BLOCK_M, BLOCK_N // 2, 2]))
    y = gate * quick_sigmoid(gate) * up
    i = column // 2 + tl.arange(0, BLOCK_N // 2)
    to = out + m.to(tl.int64)[:, None] * (DOUBLE // 2) + i[None, :]
    tl.store(to, narrow(y, out.dtype.element_ty), mask=ok[:, None] & (i < DOUBLE // 2)[None, :])


@triton.jit
def _sorted_down(
    act,
    half,
    weight,
    order,
    shares,
    tiles,
    out,
    TOP_K: tl.constexpr,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SHARDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HALVES: tl.constexpr,
    PDL: tl.constexpr,
):
    wait_for_previous(PDL)
    columns: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    tile = tiles + tl.program_id(0) // columns * 3
    column = tl.program_id(0) % columns * BLOCK_N
    expert = tl.load(tile)
    if expert >= 0:
        first = tl.load(tile + 1)
        stop = tl.load(tile + 2)
        if HALVES and stop - first <= BLOCK_M // 2:
            _down_tile(
                half, weight, order, shares, out, expert, first, stop, column,
                TOP_K, PARTS, HIDDEN, INNER, SHARDS, BLOCK_M // 2, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            _down_tile(
                act, weight, order, shares, out, expert, first, stop, column,
                TOP_K, PARTS, HIDDEN, INNER, SHARDS, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip


@triton.jit
def _down_tile(
    act,
    weight,
    order,
    shares,
    out,
    expert,
    first,
    stop,
    column,
    TOP_K: tl.constexpr,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    SHARDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = first + tl.arange(0, BLOCK_M)
    ok = m < stop
    # Both before the products, which then hide the way to memory.
    pair = tl.load(order + m, mask=ok, other=0)
    share = tl.load(shares + pair, mask=ok, other=0.0)
    n = column + tl.arange(0, BLOCK_N)
    place = pair // TOP_K * PARTS + pair % TOP_K
    to = out + place.to(tl.int64)[:, None] * HIDDEN + n[None, :]
    for shard in tl.static_range(SHARDS):
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k0 in range(shard * (INNER // SHARDS), (shard + 1) * (INNER // SHARDS), BLOCK_K):
            acc = dot(act.load([first, k0]), weight.load([expert * HIDDEN + column, k0]).T, acc)
        acc *= share[:, None]
        at = to + shard * (PARTS // SHARDS * HIDDEN)
        tl.store(at, narrow(acc, out.dtype.element_ty), mask=ok[:, None] & (n < HIDDEN)[None, :])
