"""What stands between DeltaNet's input projection and its rule, for prompt tokens, in one launch.

Depthwise causal convolution with silu, unit length of q and k, gates, and the convolution's state.
Legend: T rows, N sequences, C channels, W taps, K key heads, H value heads, d dim of either.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.numerics import narrow, quick_sigmoid
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.sequences import BLOCK, Sequences
from splitrank.models.ops.gpu.tiles import Tile


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
    conv_states: torch.Tensor,
    sequences: Sequences,
    key_heads: int,
    tile: Tile,
) -> DeltaInputs:
    """projected [T, C + H d + 2 H]: q, k, v before the convolution, z (not read), b, a; rows may have gaps.

    taps [W, C] float32, oldest first; decay_rate (minus the exponential of ``A_log``) and dt_bias [H] float32.
    conv_states [slots, W - 1, C]: each sequence's slot is read, unless its start is 0, and written. d is a power of
    two. Specification: ``reference.causal_conv``.
    """
    (num_taps, channels), num_heads, rows = taps.shape, decay_rate.shape[0], projected.shape[0]
    dim, dtype = channels // (2 * key_heads + num_heads), projected.dtype
    q, k = projected.new_empty(2, rows, key_heads, dim)
    v = projected.new_empty(rows, num_heads, dim)
    log_decay, beta = taps.new_empty(2, rows, num_heads)
    tiles = BLOCK // tile["t"]
    launch(
        _conv_chunk,
        (sequences.num_blocks * tiles, 2 * key_heads + num_heads + 1),
        tile,
        projected=Operand(projected, (rows, channels + num_heads * (dim + 2)), dtype, strided=True),
        stride=projected.stride(0),
        taps=Operand(taps, (num_taps, channels), torch.float32),
        decay_rate=Operand(decay_rate, (num_heads,), torch.float32),
        dt_bias=Operand(dt_bias, (num_heads,), torch.float32),
        states=Operand(conv_states, (conv_states.shape[0], num_taps - 1, channels), dtype),
        blocks=sequences.blocks,
        cu_seqlens=sequences.cu_seqlens,
        starts=sequences.starts,
        slots=sequences.slots,
        q=q,
        k=k,
        v=v,
        log_decay=log_decay,
        beta=beta,
        KEY_HEADS=key_heads,
        NUM_HEADS=num_heads,
        ALL_HEADS=triton.next_power_of_2(num_heads),
        DIM=dim,
        NUM_TAPS=num_taps,
        STATE_ROWS=triton.next_power_of_2(num_taps - 1),
        TILES=tiles,
        BLOCK_T=tile["t"],
    )
    return DeltaInputs(q, k, v, log_decay, beta)


@triton.jit
def _conv_chunk(
    projected,
    stride,
    taps,
    decay_rate,
    dt_bias,
    states,
    blocks,
    cu_seqlens,
    starts,
    slots,
    q,
    k,
    v,
    log_decay,
    beta,
    KEY_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    NUM_TAPS: tl.constexpr,
    STATE_ROWS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_T rows of one head's channels; one more column of programs for the gates of all heads."""
    wait_for_previous(PDL)
    block = tl.program_id(0) // TILES
    sequence = tl.load(blocks + 2 * block)
    first = tl.load(blocks + 2 * block + 1) + tl.program_id(0) % TILES * BLOCK_T
    stop = tl.load(cu_seqlens + sequence + 1)
    if first >= stop:
        return
    rows = first + tl.arange(0, BLOCK_T)
    ok = (rows < stop)[:, None]
    wide = rows.to(tl.int64)[:, None]
    group = tl.program_id(1)
    CHANNELS: tl.constexpr = (2 * KEY_HEADS + NUM_HEADS) * DIM
    if group == 2 * KEY_HEADS + NUM_HEADS:
        h = tl.arange(0, ALL_HEADS)
        real = h < NUM_HEADS
        here = ok & real[None, :]
        at = projected + wide * stride + (CHANNELS + NUM_HEADS * DIM + h)[None, :]
        b = tl.load(at, mask=here, other=0.0).to(tl.float32)
        a = tl.load(at + NUM_HEADS, mask=here, other=0.0).to(tl.float32)
        a += tl.load(dt_bias + h, mask=real, other=0.0)[None, :]
        softplus = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
        decay = tl.load(decay_rate + h, mask=real, other=0.0)[None, :] * softplus
        tl.store(beta + wide * NUM_HEADS + h[None, :], quick_sigmoid(b), mask=here)
        tl.store(log_decay + wide * NUM_HEADS + h[None, :], decay, mask=here)
        return
    c = group * DIM + tl.arange(0, DIM)
    begin = tl.load(cu_seqlens + sequence)
    mixed = tl.zeros([BLOCK_T, DIM], tl.float32)
    for tap in tl.static_range(NUM_TAPS):
        seen = ok & (rows - (NUM_TAPS - 1 - tap) >= begin)[:, None]
        at = projected + (wide - (NUM_TAPS - 1 - tap)) * stride + c[None, :]
        mixed += tl.load(at, mask=seen, other=0.0).to(tl.float32) * tl.load(taps + tap * CHANNELS + c)[None, :]
    if first == begin:
        slot = tl.load(slots + sequence).to(tl.int64)
        old = states + slot * (NUM_TAPS - 1) * CHANNELS + c[None, :]
        held = tl.where(tl.load(starts + sequence) > 0, NUM_TAPS - 1, 0)
        mixed += _from_state(old, taps + c, held, CHANNELS, NUM_TAPS, BLOCK_T, DIM)
        _write_state(old, projected + c[None, :], stride, held, begin, stop, CHANNELS, NUM_TAPS, STATE_ROWS)
    mixed = mixed * quick_sigmoid(mixed)
    if group < 2 * KEY_HEADS:
        mixed = mixed * tl.rsqrt(tl.sum(mixed * mixed, 1) + 1e-6)[:, None]
    out = narrow(mixed, q.dtype.element_ty)
    d = tl.arange(0, DIM)[None, :]
    if group < KEY_HEADS:
        tl.store(q + (wide * KEY_HEADS + group) * DIM + d, out, mask=ok)
    elif group < 2 * KEY_HEADS:
        tl.store(k + (wide * KEY_HEADS + group - KEY_HEADS) * DIM + d, out, mask=ok)
    else:
        tl.store(v + (wide * NUM_HEADS + group - 2 * KEY_HEADS) * DIM + d, out, mask=ok)


@triton.jit
def _from_state(
    old,
    taps,
    held,
    CHANNELS: tl.constexpr,
    NUM_TAPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    DIM: tl.constexpr,
):
    """What the state's ``held`` rows add to a sequence's first BLOCK_T sums."""
    i = tl.arange(0, BLOCK_T)[:, None]
    part = tl.zeros([BLOCK_T, DIM], tl.float32)
    for tap in tl.static_range(NUM_TAPS - 1):
        x = tl.load(old + (i + tap) * CHANNELS, mask=i + tap < held, other=0.0).to(tl.float32)
        part += x * tl.load(taps + tap * CHANNELS)[None, :]
    return part


@triton.jit
def _write_state(
    old,
    inputs,
    stride,
    held,
    begin,
    stop,
    CHANNELS: tl.constexpr,
    NUM_TAPS: tl.constexpr,
    STATE_ROWS: tl.constexpr,
):
    """The last inputs of the sequence take the state's place; a short run keeps some of the old ones.

    The program that has read these channels of the slot writes them, so that no other can read what is new.
    """
    m = tl.arange(0, STATE_ROWS)[:, None]
    row = stop - (NUM_TAPS - 1) + m  # of the new state's row m, if it is among the inputs
    kept = tl.load(old + (m + stop - begin) * CHANNELS, mask=m + stop - begin < held, other=0.0)
    at = inputs + tl.maximum(row, begin).to(tl.int64) * stride
    new = tl.load(at, mask=(row >= begin) & (m < NUM_TAPS - 1), other=0.0)
    tl.debug_barrier()
    tl.store(old + m * CHANNELS, tl.where(row >= begin, new, kept), mask=m < NUM_TAPS - 1)
