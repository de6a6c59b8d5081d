"""What stands between DeltaNet's input projection and its rule, for prompt tokens, in one launch.

Depthwise causal convolution with silu, unit length of q and k, gates. The convolution's last inputs lie in a ring,
position p at p mod W, as ``delta_step`` reads them.
Legend: T rows, N sequences, C channels, W taps, K key heads, H value heads, d dim of either.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.numerics import narrow, quick_sigmoid
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.sequences import BLOCK, Sequences
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2


class DeltaInputs(NamedTuple):
    """What the rule takes."""

    q: torch.Tensor  # [T, K, d], of length 1
    k: torch.Tensor  # [T, K, d], of length 1
    v: torch.Tensor  # [T, H, d]
    log_decay: torch.Tensor  # [T, H] float32
    beta: torch.Tensor  # [T, H] float32


def conv_chunk(
    projected: torch.Tensor,
    taps: torch.Tensor,
    decay_rate: torch.Tensor,
    dt_bias: torch.Tensor,
    ring: torch.Tensor,
    sequences: Sequences,
    key_heads: int,
    tile: Tile,
) -> DeltaInputs:
    """projected [T, C + H d + 2 H]: q, k, v before the convolution, z (not read), b, a; rows may have gaps.

    taps [W, C] float32, oldest first; decay_rate (minus the exponential of ``A_log``) and dt_bias [H] float32.
    ring [slots, W, C]: inputs before each sequence's start are read from its slot, its last ones written. Before
    position 0 they are zero, whatever the slot holds. d is a power of two, W at most 4. Specification:
    ``reference.causal_conv``.
    """
    (num_taps, channels), num_heads, rows = taps.shape, decay_rate.shape[0], projected.shape[0]
    dim, dtype = channels // (2 * key_heads + num_heads), projected.dtype
    mixed = projected.new_empty(rows * channels)  # one after the other, so that a kernel reaches all from one address
    q, k, v = mixed.split([rows * key_heads * dim, rows * key_heads * dim, rows * num_heads * dim])
    log_decay, beta = taps.new_empty(2, rows, num_heads)
    heads = math.gcd(key_heads, num_heads, tile["heads"])
    launch(
        _conv_chunk,
        (sequences.num_blocks, (2 * key_heads + num_heads) // heads + 1),
        tile,
        projected=Operand(projected, (rows, channels + num_heads * (dim + 2)), dtype, strided=True),
        stride=projected.stride(0),
        taps=Operand(taps, (num_taps, channels), torch.float32),
        decay_rate=Operand(decay_rate, (num_heads,), torch.float32),
        dt_bias=Operand(dt_bias, (num_heads,), torch.float32),
        ring=Operand(ring, (ring.shape[0], num_taps, channels), dtype),
        blocks=sequences.blocks,
        cu_seqlens=sequences.cu_seqlens,
        starts=sequences.starts,
        slots=sequences.slots,
        mixed=mixed,
        rows=rows,
        log_decay=log_decay,
        beta=beta,
        KEY_HEADS=key_heads,
        NUM_HEADS=num_heads,
        ALL_HEADS=next_power_of_2(num_heads),
        DIM=dim,
        NUM_TAPS=num_taps,
        HEADS=heads,
        BLOCK=BLOCK,
    )
    key_shape = (rows, key_heads, dim)
    return DeltaInputs(q.view(key_shape), k.view(key_shape), v.view(rows, num_heads, dim), log_decay, beta)


@triton.jit(do_not_specialize=["rows"])
def _conv_chunk(
    projected, stride, taps, decay_rate, dt_bias, ring, blocks, cu_seqlens, starts, slots, mixed, rows, log_decay, beta,
    KEY_HEADS: tl.constexpr, NUM_HEADS: tl.constexpr, ALL_HEADS: tl.constexpr, DIM: tl.constexpr,
    NUM_TAPS: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block's rows of HEADS heads' channels, one after the other; one more column of programs for all gates."""
    wait_for_previous(PDL)
    sequence = tl.load(blocks + 2 * tl.program_id(0))
    first = tl.load(blocks + 2 * tl.program_id(0) + 1)
    begin = tl.load(cu_seqlens + sequence)
    stop = tl.load(cu_seqlens + sequence + 1)
    CHANNELS: tl.constexpr = (2 * KEY_HEADS + NUM_HEADS) * DIM
    if tl.program_id(1) == tl.num_programs(1) - 1:
        gates = projected + CHANNELS + NUM_HEADS * DIM
        _gates(gates, stride, decay_rate, dt_bias, log_decay, beta, first, stop, NUM_HEADS, ALL_HEADS, BLOCK)
        return
    head = tl.program_id(1) * HEADS
    h = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, DIM)[None, :]
    c = (head + h) * DIM + d
    start = tl.load(starts + sequence)
    ring += tl.load(slots + sequence).to(tl.int64) * NUM_TAPS * CHANNELS
    x0 = _before(projected, stride, ring, c, first - 3, begin, start, CHANNELS, NUM_TAPS)
    x1 = _before(projected, stride, ring, c, first - 2, begin, start, CHANNELS, NUM_TAPS)
    x2 = _before(projected, stride, ring, c, first - 1, begin, start, CHANNELS, NUM_TAPS)
    if first == begin:
        # Of a slot's channels one program reads the old and writes the new, each element in one thread.
        for back in tl.static_range(NUM_TAPS):
            row = stop - 1 - back
            inside = c < tl.where(row >= begin, CHANNELS, 0)
            x = tl.load(projected + row.to(tl.int64) * stride + c, mask=inside, other=0.0)
            tl.store(ring + (start + row - begin) % NUM_TAPS * CHANNELS + c, x, mask=inside)
    unit = head < 2 * KEY_HEADS
    width = tl.where(unit, KEY_HEADS * DIM, NUM_HEADS * DIM)
    part = tl.where(head < KEY_HEADS, 0, tl.where(unit, KEY_HEADS, 2 * KEY_HEADS)) * DIM  # channels before q, k or v
    to = mixed + rows.to(tl.int64) * part + first.to(tl.int64) * width + head * DIM - part + h * DIM + d
    projected += first.to(tl.int64) * stride
    count = tl.minimum(BLOCK, stop - first)
    _walk_rows(projected, stride, taps, x0, x1, x2, to, width, unit, count, c, d, CHANNELS, NUM_TAPS, DIM)


@triton.jit
def _walk_rows(
    projected, stride, taps, x0, x1, x2, to, width, unit, count, c, d,
    CHANNELS: tl.constexpr, NUM_TAPS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Channels c of ``count`` rows, four at a time; x0, x1, x2 are the inputs before the first.

    The window of four inputs stays in registers: with shifted loads of a tile, the conversions alone cost more than the
    memory does.
    """
    w0 = _taps(taps, c, 3, CHANNELS, NUM_TAPS)
    w1 = _taps(taps, c, 2, CHANNELS, NUM_TAPS)
    w2 = _taps(taps, c, 1, CHANNELS, NUM_TAPS)
    w3 = _taps(taps, c, 0, CHANNELS, NUM_TAPS)
    for r in range(0, count, 4):
        # All loads first: the compiler cannot know that no store changes what they read.
        left = count - r
        row = projected + r * stride + c
        x3 = tl.load(row, mask=c < tl.where(left > 0, CHANNELS, 0), other=0.0).to(tl.float32)
        x4 = tl.load(row + stride, mask=c < tl.where(left > 1, CHANNELS, 0), other=0.0).to(tl.float32)
        x5 = tl.load(row + 2 * stride, mask=c < tl.where(left > 2, CHANNELS, 0), other=0.0).to(tl.float32)
        x6 = tl.load(row + 3 * stride, mask=c < tl.where(left > 3, CHANNELS, 0), other=0.0).to(tl.float32)
        at = to + r * width
        _write_row(x0 * w0 + x1 * w1 + x2 * w2 + x3 * w3, unit, at, left > 0, d, DIM)
        _write_row(x1 * w0 + x2 * w1 + x3 * w2 + x4 * w3, unit, at + width, left > 1, d, DIM)
        _write_row(x2 * w0 + x3 * w1 + x4 * w2 + x5 * w3, unit, at + 2 * width, left > 2, d, DIM)
        _write_row(x3 * w0 + x4 * w1 + x5 * w2 + x6 * w3, unit, at + 3 * width, left > 3, d, DIM)
        x0 = x4
        x1 = x5
        x2 = x6


@triton.jit
def _gates(
    gates,
    stride,
    decay_rate,
    dt_bias,
    log_decay,
    beta,
    first,
    stop,
    NUM_HEADS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """b and a at the pointers ``gates`` -> beta and the logarithm of the decay."""
    rows = (first + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    h = tl.arange(0, ALL_HEADS)
    real = h < NUM_HEADS
    here = (rows < stop) & real[None, :]
    b = tl.load(gates + rows * stride + h[None, :], mask=here, other=0.0).to(tl.float32)
    a = tl.load(gates + rows * stride + (NUM_HEADS + h)[None, :], mask=here, other=0.0).to(tl.float32)
    a += tl.load(dt_bias + h, mask=real, other=0.0)[None, :]
    softplus = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
    decay = tl.load(decay_rate + h, mask=real, other=0.0)[None, :] * softplus
    tl.store(beta + rows * NUM_HEADS + h[None, :], quick_sigmoid(b), mask=here)
    tl.store(log_decay + rows * NUM_HEADS + h[None, :], decay, mask=here)


@triton.jit
def _before(projected, stride, ring, c, row, begin, start, CHANNELS: tl.constexpr, NUM_TAPS: tl.constexpr):
    """Channels c of the input at ``row``, which may lie before the sequence's ``begin``: then in the ring, or nowhere.

    A scalar condition is the number of channels that pass.
    """
    x = tl.load(projected + row.to(tl.int64) * stride + c, mask=c < tl.where(row >= begin, CHANNELS, 0), other=0.0)
    position = start + row - begin
    held = tl.where(row < begin, tl.where(position >= 0, CHANNELS, 0), 0)
    at = ring + tl.maximum(position, 0) % NUM_TAPS * CHANNELS
    return (x + tl.load(at + c, mask=c < held, other=0.0)).to(tl.float32)


@triton.jit
def _taps(taps, c, back: tl.constexpr, CHANNELS: tl.constexpr, NUM_TAPS: tl.constexpr):
    """What the input ``back`` rows before is multiplied by."""
    if back < NUM_TAPS:
        return tl.load(taps + (NUM_TAPS - 1 - back) * CHANNELS + c)
    return tl.zeros(c.shape, tl.float32)


@triton.jit
def _write_row(x, unit, at, real, d, DIM: tl.constexpr):
    """Silu of a row's sums, of length 1 a head if ``unit``, to the pointers ``at``."""
    x = x * quick_sigmoid(x)
    x *= tl.where(unit, tl.rsqrt(tl.sum(x * x, 1) + 1e-6), 1.0)[:, None]
    tl.store(at, narrow(x, at.dtype.element_ty), mask=d < tl.where(real, DIM, 0))
