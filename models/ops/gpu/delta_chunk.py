"""The gated delta rule over blocks of 64 tokens of several sequences (Yang et al., "Gated Delta Networks", 2024).

Two launches. ``solve_blocks`` takes all blocks at once: what a block does to itself, that is the inverse of its unit
triangular system and its decayed products of queries with keys. ``delta_chunk`` walks the blocks of one sequence, head
and part of the value dims in order and carries the state in registers. It keeps everything transposed,
[values, tokens], so that each product takes the one before it as its first operand straight from registers.
Legend: T rows, N sequences, B blocks, K key heads, H value heads (a multiple of K), d key head dim, v value head dim.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from splitrank.models.layer_shapes import STATE_PERIOD, pending_shape
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.numerics import narrow
from splitrank.models.ops.gpu.primitives import dot, wait_for_previous
from splitrank.models.ops.gpu.sequences import BLOCK, Sequences
from splitrank.models.ops.gpu.tiles import Tile


class SolvedBlocks(NamedTuple):
    """What ``delta_chunk`` needs of each block and value head, beside q, k and v."""

    inverse: torch.Tensor  # [B, H, 64, 64] (1 + lower triangle)^-1, beta in its columns
    within: torch.Tensor  # [B, H, 64, 64] scaled and decayed products of queries with keys up to their own position
    decays: torch.Tensor  # [B, H, 2, 64] float32: from the block's begin to a token, from there to the block's end


def solve_blocks(
    q: torch.Tensor, k: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor, sequences: Sequences, tile: Tile
) -> SolvedBlocks:
    """q, k [T, K, d] of length 1; log_decay, beta [T, H] float32. d is a power of two."""
    (rows, key_heads, dim), num_heads = q.shape, beta.shape[1]
    blocks = (sequences.num_blocks, num_heads)
    squares = (*blocks, BLOCK, BLOCK)
    solved = SolvedBlocks(q.new_empty(squares), q.new_empty(squares), beta.new_empty(*blocks, 2, BLOCK))
    launch(
        _solve_blocks,
        blocks,
        tile,
        q=Operand(q, (rows, key_heads, dim), q.dtype, block=(BLOCK, dim)),
        k=Operand(k, (rows, key_heads, dim), q.dtype, block=(BLOCK, dim)),
        log_decay=Operand(log_decay, (rows, num_heads), torch.float32),
        beta=Operand(beta, (rows, num_heads), torch.float32),
        blocks=sequences.blocks,
        cu_seqlens=sequences.cu_seqlens,
        inverse=Operand(solved.inverse, squares, q.dtype, block=(BLOCK, BLOCK), row_dims=3),
        within=Operand(solved.within, squares, q.dtype, block=(BLOCK, BLOCK), row_dims=3),
        decays=solved.decays,
        KEY_HEADS=key_heads,
        NUM_HEADS=num_heads,
        DIM=dim,
        SCALE=dim**-0.5,
        BLOCK=BLOCK,
    )
    return solved


def delta_chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    solved: SolvedBlocks,
    states: torch.Tensor,
    pending: torch.Tensor,
    sequences: Sequences,
    tile: Tile,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """q, k [T, K, d] of length 1, v [T, H, v], ``solved`` from the same rows -> [T, H, v], into ``out`` if given. d and
    v are powers of two.

    ``states`` [slots, H, d, v] float32: each sequence's slot is read, unless its start is 0, and written. ``pending``
    [slots, 7, K d + H v + H] float32 (``delta_step``) is zero behind it where a sequence ends inside 8 positions. Sums
    are float32, operands of products have the dtype of q. Specification: ``reference.delta_rule``.
    """
    (rows, key_heads, dim), (num_heads, value_dim) = q.shape, v.shape[1:]
    squares, width = (sequences.num_blocks, num_heads, BLOCK, BLOCK), min(tile["v"], value_dim)
    out = torch.empty_like(v) if out is None else out
    of_slot = pending_shape(key_heads, dim, num_heads, value_dim)
    launch(
        _delta_chunk,
        (value_dim // width, num_heads, sequences.num_sequences),
        tile,
        q=Operand(q, (rows, key_heads, dim), q.dtype),
        k=Operand(k, (rows, key_heads, dim), q.dtype),
        v=Operand(v, (rows, num_heads, value_dim), q.dtype),
        q_tiles=Operand(q, (rows, key_heads, dim), q.dtype, block=(BLOCK, dim)),
        k_tiles=Operand(k, (rows, key_heads, dim), q.dtype, block=(BLOCK, dim)),
        v_tiles=Operand(v, (rows, num_heads, value_dim), q.dtype, block=(BLOCK, width)),
        out_tiles=Operand(out, (rows, num_heads, value_dim), q.dtype, block=(BLOCK, width)),
        inverse=Operand(solved.inverse, squares, q.dtype, block=(BLOCK, BLOCK), row_dims=3),
        within=Operand(solved.within, squares, q.dtype, block=(BLOCK, BLOCK), row_dims=3),
        decays=solved.decays,
        states=Operand(states, (states.shape[0], num_heads, dim, value_dim), torch.float32),
        pending=Operand(pending, (states.shape[0], *of_slot), torch.float32),
        slots=sequences.slots,
        starts=sequences.starts,
        cu_seqlens=sequences.cu_seqlens,
        first_blocks=sequences.first_blocks,
        out=out,
        KEY_HEADS=key_heads,
        NUM_HEADS=num_heads,
        DIM=dim,
        SCALE=dim**-0.5,
        VALUE_DIM=value_dim,
        BLOCK_V=width,
        BLOCK=BLOCK,
        PERIOD=STATE_PERIOD,
    )
    return out


@triton.jit
def _solve_blocks(
    q,
    k,
    log_decay,
    beta,
    blocks,
    cu_seqlens,
    inverse,
    within,
    decays,
    KEY_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One block and value head."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    wait_for_previous(PDL)
    first = tl.load(blocks + 2 * block + 1)
    stop = tl.load(cu_seqlens + tl.load(blocks + 2 * block) + 1)
    i = tl.arange(0, BLOCK)
    ok = first + i < stop
    column = head // (NUM_HEADS // KEY_HEADS) * DIM
    keys = k.load([first, column])
    queries = q.load([first, column])
    # Rows behind the end have beta 0 and decay 1: they change nothing.
    gates = first.to(tl.int64) * NUM_HEADS + head
    b = tl.load(beta + gates + i * NUM_HEADS, mask=ok, other=0.0)
    g = tl.cumsum(tl.load(log_decay + gates + i * NUM_HEADS, mask=ok, other=0.0), 0)
    whole = tl.sum(tl.where(i == BLOCK - 1, g, 0.0), 0)
    system = (block * NUM_HEADS + head) * BLOCK
    at = decays + system.to(tl.int64) * 2
    tl.store(at + i, tl.exp(g))
    tl.store(at + BLOCK + i, tl.exp(whole - g))

    row, column = i[:, None], i[None, :]
    # The upper half would overflow. Rows behind the end are others', NaN perhaps: they stay out of the system, and in
    # ``within`` only they hold them.
    decay = tl.exp(tl.minimum(g[:, None] - g[None, :], 0.0))
    keys_transposed = tl.trans(keys)
    zero = tl.zeros([BLOCK, BLOCK], tl.float32)
    dtype: tl.constexpr = keys.dtype
    seen = tl.where(row >= column, dot(queries, keys_transposed, zero) * decay * SCALE, 0.0)
    within.store([system, 0], narrow(seen, dtype))
    inside = (row > column) & ok[:, None]
    lower = tl.where(inside, dot(keys, keys_transposed, zero) * decay * b[:, None], 0.0)
    operand: tl.constexpr = tl.float32 if dtype == tl.float32 else tl.float16
    inverse.store([system, 0], narrow(_inverse(lower, BLOCK, operand) * b[None, :], dtype))


@triton.jit
def _inverse(lower, BLOCK: tl.constexpr, operand: tl.constexpr):
    """lower [BLOCK, BLOCK], strictly lower triangular -> (1 + lower)^-1, by doubling the blocks that are inverted.

    With M the inverse of the diagonal blocks of size s, and L the part of ``lower`` that joins pairs of them, the
    inverse for size 2 s is M - M L M. All entries lie in [-1, 1], since keys have length 1 and beta and decay are at
    most 1: so float16 operands are as exact as tf32 and twice as fast.
    """
    # The highest bit in which row and column differ is the level that joins their blocks.
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    m = tl.where(row == column, 1.0, 0.0) - tl.where(row ^ column == 1, lower, 0.0)
    zero = tl.zeros([BLOCK, BLOCK], tl.float32)
    for level in range(1, 6):
        half = m.to(operand)
        joins = tl.where((row >> level) ^ (column >> level) == 1, lower, 0.0).to(operand)
        m -= dot(dot(half, joins, zero).to(operand), half, zero)
    return m


@triton.jit
def _delta_chunk(
    q, k, v, q_tiles, k_tiles, v_tiles, out_tiles, inverse, within, decays, states, pending, slots, starts, cu_seqlens,
    first_blocks, out,
    KEY_HEADS: tl.constexpr, NUM_HEADS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK: tl.constexpr, PERIOD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """All blocks of one sequence, value head and BLOCK_V of its value dims."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    wait_for_previous(PDL)
    begin = tl.load(cu_seqlens + sequence)
    stop = tl.load(cu_seqlens + sequence + 1)
    first_block = tl.load(first_blocks + sequence)
    d = tl.arange(0, DIM)
    e = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    i = tl.arange(0, BLOCK)
    slot = tl.load(slots + sequence).to(tl.int64)
    at_state = states + ((slot * NUM_HEADS + head) * DIM + d[None, :]) * VALUE_DIM + e[:, None]
    known = tl.where(tl.load(starts + sequence) > 0, DIM, 0)  # dims of the state that count: all or none
    state = tl.load(at_state, mask=(d < known)[None, :], other=0.0)  # [BLOCK_V, DIM]
    key_head = head // (NUM_HEADS // KEY_HEADS)
    whole_blocks = (stop - begin) // BLOCK
    for n in range(whole_blocks):
        first = begin + n * BLOCK
        system = (first_block + n) * NUM_HEADS + head
        column = head * VALUE_DIM + tl.program_id(0) * BLOCK_V
        keys = k_tiles.load([first, key_head * DIM])
        queries = q_tiles.load([first, key_head * DIM])
        values = v_tiles.load([first, column])
        solve = inverse.load([system * BLOCK, 0])
        attend = within.load([system * BLOCK, 0])
        read, state = _advance(state, keys, queries, tl.trans(values), solve, attend, decays, system, i, SCALE)
        out_tiles.store([first, column], tl.trans(narrow(read, out.dtype.element_ty)))
    if whole_blocks * BLOCK < stop - begin:
        # What lies behind the end belongs to others, and may be NaN.
        first = begin + whole_blocks * BLOCK
        system = (first_block + whole_blocks) * NUM_HEADS + head
        ok = first + i < stop
        at = (first.to(tl.int64) * KEY_HEADS + key_head) * DIM + i[:, None] * (KEY_HEADS * DIM) + d[None, :]
        keys = tl.load(k + at, mask=ok[:, None], other=0.0)  # [BLOCK, DIM]
        queries = tl.load(q + at, mask=ok[:, None], other=0.0)
        at_values = (first.to(tl.int64) * NUM_HEADS + head) * VALUE_DIM
        at_values += i[None, :] * (NUM_HEADS * VALUE_DIM) + e[:, None]
        values = tl.load(v + at_values, mask=ok[None, :], other=0.0)  # [BLOCK_V, BLOCK]
        solve = inverse.load([system * BLOCK, 0])
        attend = within.load([system * BLOCK, 0])
        read, state = _advance(state, keys, queries, values, solve, attend, decays, system, i, SCALE)
        tl.store(out + at_values, narrow(read, out.dtype.element_ty), mask=ok[None, :])
    tl.store(at_state, state)
    # The state has all positions: the decode steps behind it must find nothing pending.
    width: tl.constexpr = KEY_HEADS * DIM + NUM_HEADS * (VALUE_DIM + 1)
    past = tl.arange(0, PERIOD)
    is_past = past < (tl.load(starts + sequence) + stop - begin) % PERIOD
    at_pending = pending + (slot * (PERIOD - 1) + past) * width
    shares_key_head = tl.program_id(0) + head % (NUM_HEADS // KEY_HEADS)
    keys_to_clear = (d < tl.where(shares_key_head == 0, DIM, 0))[None, :]
    _clear(at_pending[:, None] + (key_head * DIM + d)[None, :], is_past[:, None] & keys_to_clear)
    _clear(at_pending[:, None] + (KEY_HEADS * DIM + head * VALUE_DIM + e)[None, :], is_past[:, None])
    _clear(at_pending + width - NUM_HEADS + head, is_past)


@triton.jit
def _clear(at, mask):
    tl.store(at, tl.zeros(at.shape, tl.float32), mask=mask)


@triton.jit
def _advance(state, keys, queries, values, solve, attend, decays, system, i, SCALE: tl.constexpr):
    """One block: state [v, d], keys and queries [BLOCK, d], values [v, BLOCK] -> outputs [v, BLOCK], the new state."""
    zero = tl.zeros(values.shape, tl.float32)
    dtype: tl.constexpr = keys.dtype
    BLOCK: tl.constexpr = keys.shape[0]
    at = decays + system.to(tl.int64) * (2 * BLOCK)
    since_begin = tl.load(at + i)
    to_end = tl.load(at + BLOCK + i)
    rounded = narrow(state, dtype)
    new = values.to(tl.float32) - dot(rounded, tl.trans(keys), zero) * since_begin[None, :]
    new = dot(narrow(new, dtype), tl.trans(solve), zero)
    read = dot(rounded, tl.trans(queries), zero) * (since_begin * SCALE)[None, :]
    read = dot(narrow(new, dtype), tl.trans(attend), read)
    state = dot(narrow(new * to_end[None, :], dtype), keys, state * tl.load(at + BLOCK - 1))
    return read, state
