"""The likeliest token of each row, from the head's product and the maxima of its blocks: no logits go to memory, unless
the product is the vendor's.

Logits are rounded to the model's dtype before they are compared, and the lowest id wins among equals, as where logits
are stored. ``projection.project`` stores them, for rows that need more. Legend: T rows, K hidden size, V vocabulary.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu import dense
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.projection import (
    dot_launch,
    fma_launch,
    product_with_row,
    product_with_tokens,
    whole_rows,
)
from splitrank.models.ops.gpu.tiles import LIBRARY, Tile
from splitrank.models.rounding import ceil_div, next_power_of_2

_FINISH_BLOCK = 16384


@triton.jit
def _argmax_fma(
    x,
    weight,
    best,
    best_at,
    N,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    rows = whole_rows(weight, n, N, K, BLOCK_K)
    wait_for_previous(PDL)
    for row in tl.static_range(NUM_ROWS):
        y = product_with_row(rows, x, row, K, BLOCK_K).to(x.dtype.element_ty).to(tl.float32)
        y = tl.where(y == y, y, float("inf"))
        value, at = tl.max(tl.where(n < N, y, float("-inf")), 0, return_indices=True)
        tl.store(best + row * tl.num_programs(0) + tl.program_id(0), value)
        tl.store(best_at + row * tl.num_programs(0) + tl.program_id(0), first + at)


@triton.jit(do_not_specialize=["num_rows"])
def _argmax_dot(
    x,
    weight,
    best,
    best_at,
    N,
    num_rows,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    token_blocks = tl.cdiv(num_rows, BLOCK_T)
    num_blocks = tl.num_programs(0) // token_blocks
    block = tl.program_id(0) // token_blocks
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(0) % token_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    wait_for_previous(PDL)
    y = product_with_tokens(x, weight, n, t, N, num_rows, K, K, BLOCK_N, BLOCK_K, BLOCK_T)
    y = y.to(x.dtype.element_ty).to(tl.float32)
    y = tl.where(y == y, y, float("inf"))
    value, at = tl.max(tl.where((n < N)[:, None], y, float("-inf")), 0, return_indices=True)
    tl.store(best + t * num_blocks + block, value, mask=t < num_rows)
    tl.store(best_at + t * num_blocks + block, block * BLOCK_N + at, mask=t < num_rows)


@triton.jit
def _argmax_stored(logits, best, best_at, N, BLOCK_N: tl.constexpr, PDL: tl.constexpr):
    block, row, num_blocks = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    wait_for_previous(PDL)
    y = tl.load(logits + row * N + n, mask=n < N, other=float("-inf")).to(tl.float32)
    y = tl.where(y == y, y, float("inf"))
    value, at = tl.max(y, 0, return_indices=True)
    tl.store(best + row * num_blocks + block, value)
    tl.store(best_at + row * num_blocks + block, block * BLOCK_N + at)


@triton.jit
def _finish_argmax(best, best_at, values, tokens, count, start, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.full([BLOCK], 2147483647, tl.int32)
    for first in range(0, count, BLOCK):
        inside = first + i < count
        value = tl.load(best + row * count + first + i, mask=inside, other=float("-inf"))
        at = tl.load(best_at + row * count + first + i, mask=inside, other=2147483647)
        where = tl.where(value > top, at, where)  # among equals the first, which is the lower id
        top = tl.maximum(top, value)
    highest = tl.max(top, 0)
    tl.store(values + row, highest)
    lowest = tl.min(tl.where(top == highest, where, 2147483647), 0)
    tl.store(tokens + row, tl.where(lowest == 2147483647, 0, lowest) + start)


def argmax_blocks(vocabulary: int, tile: Tile) -> int:
    """How many maxima a row has: the width of ``best`` and ``best_at``."""
    return ceil_div(vocabulary, tile["n"])


def head_argmax(
    x: torch.Tensor,
    weight: torch.Tensor,
    start: int,
    best: torch.Tensor,
    best_at: torch.Tensor,
    values: torch.Tensor,
    tokens: torch.Tensor,
    tile: Tile,
) -> None:
    """x [T, K] (normed), weight [V, K] (vocabulary rows from ``start`` on) -> values [T] float32, tokens [T] int32.

    best [T, argmax_blocks] float32 and best_at, the same in int32, are scratch. Ranks that split the vocabulary compare
    their values. NaN counts as +inf, so that a row that holds one has an id, and a value
    that says so.
    """
    (rows, width), (columns, _), dtype = x.shape, weight.shape, x.dtype
    blocks = argmax_blocks(columns, tile)
    operands = {
        "best": Operand(best, (rows, blocks), torch.float32),
        "best_at": Operand(best_at, (rows, blocks), torch.int32),
    }
    factors = {"x": Operand(x, (rows, width), dtype), "weight": Operand(weight, (columns, width), dtype)}
    if tile.form == LIBRARY:
        logits = Operand(dense.project(x, weight), (rows, columns), dtype)
        launch(_argmax_stored, (blocks, rows), tile, logits=logits, N=columns, BLOCK_N=tile["n"], **operands)
    elif tile.form == "fma":
        grid, sizes = fma_launch(columns, width, tile)
        launch(_argmax_fma, grid, tile, N=columns, NUM_ROWS=rows, **factors, **operands, **sizes)
    else:
        grid, sizes = dot_launch(rows, columns, width, tile)
        launch(_argmax_dot, grid, tile, N=columns, num_rows=rows, **factors, **operands, **sizes)
    launch(
        _finish_argmax,
        (rows,),
        Tile(num_warps=16, pdl=tile.pdl),
        values=Operand(values, (rows,), torch.float32),
        tokens=Operand(tokens, (rows,), torch.int32),
        count=blocks,
        start=start,
        BLOCK=min(_FINISH_BLOCK, next_power_of_2(blocks)),
        **operands,
    )
