"""Causal attention of prompt tokens over paged keys and values.

``prepare_attention`` norms and turns queries and keys, the queries where they lie, and stores keys and values in their
pages. ``attention_chunk`` multiplies by the output gate as it stores.
Legend: T rows, h query heads, K kv heads, d head dim, R rotary dims, S tokens of a page, P pages of a table.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.numerics import narrow, quick_sigmoid
from splitrank.models.ops.gpu.primitives import dot, wait_for_previous
from splitrank.models.ops.gpu.sequences import BLOCK, TILE, Sequences
from splitrank.models.ops.gpu.tiles import Tile

_LOG2_E = 1.4426950408889634


def prepare_attention(
    projected: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sequences: Sequences,
    tile: Tile,
) -> None:
    """projected [T, 2 h d + 2 K d]: query and gate by head, then k, then v; rows may have gaps.

    Queries are normed and turned in place; so are keys on their way to the pages of their sequences, where values go
    as they are. q_weight, k_weight [d]: the norms multiply by 1 + weight; cos, sin [T, R / 2] float32; keys, values
    [pages, S, K, d]. d and R are powers of two.
    """
    (num_pages, page_size, kv_heads, dim), (rows, width), dtype = keys.shape, projected.shape, projected.dtype
    num_heads, half = (width // dim - 2 * kv_heads) // 2, cos.shape[1]
    tiles = BLOCK // tile["t"]
    launch(
        _prepare_attention,
        (sequences.num_blocks * tiles, num_heads + kv_heads),
        tile,
        projected=Operand(projected, (rows, width), dtype, strided=True),
        stride=projected.stride(0),
        q_weight=Operand(q_weight, (dim,), dtype),
        k_weight=Operand(k_weight, (dim,), dtype),
        cos=Operand(cos, (rows, half), torch.float32),
        sin=Operand(sin, (rows, half), torch.float32),
        keys=Operand(keys, (num_pages, page_size, kv_heads, dim), dtype),
        values=Operand(values, (num_pages, page_size, kv_heads, dim), dtype),
        blocks=sequences.blocks,
        cu_seqlens=sequences.cu_seqlens,
        starts=sequences.starts,
        pages=sequences.pages,
        table_width=sequences.pages.shape[1],
        NUM_HEADS=num_heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=half,
        PAGE=page_size,
        EPS=eps,
        TILES=tiles,
        BLOCK_T=tile["t"],
    )


def attention_chunk(
    projected: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sequences: Sequences, tile: Tile
) -> torch.Tensor:
    """Queries and gates of ``projected`` over all keys up to their own position -> [T, h d].

    ``projected`` [T, 2 h d + 2 K d] and the pages as ``prepare_attention`` has left them. Keys are walked in blocks
    from position 0 in one order, whatever else is in the step. Specification: ``reference.attention``, times
    sigmoid(gate).
    """
    (num_pages, page_size, kv_heads, dim), (rows, width), dtype = keys.shape, projected.shape, projected.dtype
    num_heads = (width // dim - 2 * kv_heads) // 2
    out = projected.new_empty(rows, num_heads * dim)
    parts = TILE // tile["m"]
    cache = (num_pages, page_size, kv_heads, dim)
    launch(
        _attention_chunk,
        (sequences.tiles.shape[0] * parts, num_heads),
        tile,
        projected=Operand(projected, (rows, width), dtype, strided=True),
        stride=projected.stride(0),
        keys=Operand(keys, cache, dtype),
        values=Operand(values, cache, dtype),
        key_tiles=Operand(keys, cache, dtype, block=(tile["n"], dim), row_dims=2),
        value_tiles=Operand(values, cache, dtype, block=(tile["n"], dim), row_dims=2),
        tiles=sequences.tiles,
        cu_seqlens=sequences.cu_seqlens,
        starts=sequences.starts,
        pages=sequences.pages,
        table_width=sequences.pages.shape[1],
        out=out,
        NUM_HEADS=num_heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        PAGE=page_size,
        SCALE=dim**-0.5 * _LOG2_E,
        PARTS=parts,
        BLOCK_M=tile["m"],
        BLOCK_N=tile["n"],
    )
    return out


@triton.jit(do_not_specialize=["table_width"])
def _prepare_attention(
    projected,
    stride,
    q_weight,
    k_weight,
    cos,
    sin,
    keys,
    values,
    blocks,
    cu_seqlens,
    starts,
    pages,
    table_width,
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    EPS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_T rows of one query head, or of one kv head."""
    wait_for_previous(PDL)
    block = tl.program_id(0) // TILES
    head = tl.program_id(1)
    sequence = tl.load(blocks + 2 * block)
    first = tl.load(blocks + 2 * block + 1) + tl.program_id(0) % TILES * BLOCK_T
    stop = tl.load(cu_seqlens + sequence + 1)
    if first >= stop:
        return
    rows = first + tl.arange(0, BLOCK_T)
    ok = (rows < stop)[:, None]
    row = projected + rows.to(tl.int64)[:, None] * stride
    angles = rows.to(tl.int64)[:, None] * HALF + tl.arange(0, HALF)[None, :]
    c = tl.load(cos + angles, mask=ok, other=0.0)
    s = tl.load(sin + angles, mask=ok, other=0.0)
    if head < NUM_HEADS:
        at = row + head * (2 * DIM)
        _norm_and_turn(at, at, q_weight, c, s, ok, DIM, HALF, EPS)
    else:
        at = row + NUM_HEADS * (2 * DIM) + (head - NUM_HEADS) * DIM
        position = tl.load(starts + sequence) + rows - tl.load(cu_seqlens + sequence)
        page = tl.load(pages + sequence * table_width + position // PAGE, mask=rows < stop, other=0)
        to = ((page.to(tl.int64) * PAGE + position % PAGE)[:, None] * KV_HEADS + head - NUM_HEADS) * DIM
        _norm_and_turn(at, keys + to, k_weight, c, s, ok, DIM, HALF, EPS)
        d = tl.arange(0, DIM)[None, :]
        tl.store(values + to + d, tl.load(at + KV_HEADS * DIM + d, mask=ok, other=0.0), mask=ok)


@triton.jit
def _norm_and_turn(at, to, weight, c, s, ok, DIM: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr):
    """Heads at ``at`` [BLOCK_T, 1], normed, their first 2 HALF dims turned, go to ``to``, which may be the same.

    c, s [BLOCK_T, HALF]: the angles' cosines and sines.
    """
    d = tl.arange(0, DIM)
    r = tl.arange(0, HALF)
    x = tl.load(at + d[None, :], mask=ok, other=0.0).to(tl.float32)
    a = tl.load(at + r[None, :], mask=ok, other=0.0).to(tl.float32)
    b = tl.load(at + HALF + r[None, :], mask=ok, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 1) / DIM + EPS)[:, None]
    x *= factor * (1.0 + tl.load(weight + d).to(tl.float32))[None, :]
    a *= factor * (1.0 + tl.load(weight + r).to(tl.float32))[None, :]
    b *= factor * (1.0 + tl.load(weight + HALF + r).to(tl.float32))[None, :]
    dtype: tl.constexpr = to.dtype.element_ty
    tl.debug_barrier()  # all have read what is written now
    tl.store(to + d[None, :], narrow(x, dtype), mask=ok & (d >= 2 * HALF)[None, :])
    tl.store(to + r[None, :], narrow(a * c - b * s, dtype), mask=ok)
    tl.store(to + HALF + r[None, :], narrow(b * c + a * s, dtype), mask=ok)


@triton.jit
def _places(table, table_width, n0, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the keys of positions n0 .. n0 + BLOCK_N lie: [BLOCK_N], or the first if all are in one page."""
    if PAGE % BLOCK_N == 0:
        places = tl.load(table + n0 // PAGE) * PAGE + n0 % PAGE
    else:
        n = n0 + tl.arange(0, BLOCK_N)
        places = tl.load(table + n // PAGE, mask=n // PAGE < table_width, other=0) * PAGE + n % PAGE
    return places


@triton.jit(do_not_specialize=["table_width"])
def _attention_chunk(
    projected, stride, keys, values, key_tiles, value_tiles, tiles, cu_seqlens, starts, pages, table_width, out,
    NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, SCALE: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one sequence and one query head. Scores are in powers of two."""
    wait_for_previous(PDL)
    tile = tl.program_id(0) // PARTS
    head = tl.program_id(1)
    sequence = tl.load(tiles + 2 * tile)
    first = tl.load(tiles + 2 * tile + 1) + tl.program_id(0) % PARTS * BLOCK_M
    stop = tl.load(cu_seqlens + sequence + 1)
    if first >= stop:
        return
    rows = first + tl.arange(0, BLOCK_M)
    ok = (rows < stop)[:, None]
    d = tl.arange(0, DIM)[None, :]
    at = projected + rows.to(tl.int64)[:, None] * stride + head * (2 * DIM) + d
    q = tl.load(at, mask=ok, other=0.0)

    before = tl.load(starts + sequence) - tl.load(cu_seqlens + sequence)  # position less row
    seen_by_all = before + first  # keys before the tile: a multiple of BLOCK_N
    context = before + tl.minimum(first + BLOCK_M, stop)
    table = pages + sequence * table_width
    lane = head // (NUM_HEADS // KV_HEADS) * DIM
    n = tl.arange(0, BLOCK_N)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    zero = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # A page's number is loaded one block ahead, else the compiler does not load the keys ahead.
    places = _places(table, table_width, 0, PAGE, BLOCK_N)
    for n0 in range(0, seen_by_all, BLOCK_N):
        if PAGE % BLOCK_N == 0:
            key = key_tiles.load([places, lane])
            value = value_tiles.load([places, lane])
        else:
            where = places.to(tl.int64)[:, None] * (KV_HEADS * DIM) + lane + d
            key = tl.load(keys + where)
            value = tl.load(values + where)
        places = _places(table, table_width, n0 + BLOCK_N, PAGE, BLOCK_N)
        top, mass, acc = _take_in(dot(q, tl.trans(key), zero) * SCALE, value, top, mass, acc)
    for n0 in range(seen_by_all, context, BLOCK_N):
        where = _places(table, table_width, n0, PAGE, BLOCK_N).to(tl.int64)
        if PAGE % BLOCK_N == 0:
            where += n
        where = where[:, None] * (KV_HEADS * DIM) + lane + d
        # Behind the context lies what a page held before, NaN perhaps: 0 * NaN would reach the sum.
        real = (n0 + n < context)[:, None]
        score = dot(q, tl.trans(tl.load(keys + where, mask=real, other=0.0)), zero) * SCALE
        score = tl.where((before + rows)[:, None] >= (n0 + n)[None, :], score, float("-inf"))
        top, mass, acc = _take_in(score, tl.load(values + where, mask=real, other=0.0), top, mass, acc)
    gate = tl.load(at + DIM, mask=ok, other=0.0).to(tl.float32)
    acc = acc * (1.0 / mass)[:, None] * quick_sigmoid(gate)
    to = out + rows.to(tl.int64)[:, None] * (NUM_HEADS * DIM) + head * DIM + d
    tl.store(to, narrow(acc, out.dtype.element_ty), mask=ok)


@triton.jit
def _take_in(score, value, top, mass, acc):
    """One more block of keys: its scores [m, n] and values [n, d] join each row's maximum, sum and weighted sum."""
    new = tl.maximum(top, tl.max(score, 1))
    share = tl.exp2(score - new[:, None])
    fade = tl.exp2(top - new)
    acc = dot(narrow(share, value.dtype), value, acc * fade[:, None])
    return new, mass * fade + tl.sum(share, 1), acc
