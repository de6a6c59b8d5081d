"""One token of each row through a DeltaNet layer's middle: convolution, gates, unit lengths, gated delta rule.

S <- exp(g) S;  S <- S + k (beta (v - k^T S));  o = q^T S;  q and k have length 1, and q is scaled by 1/sqrt(d).
State and arithmetic are float32. Both products take the old state, which is read once: with S' = a S + k u^T,
q^T S' = a q^T S + (q.k) u. The convolution's inputs lie in a ring, position p at p mod K: the place that a step writes
is none that another block of the step reads, which a window shifted in place does not offer. What lies before a
sequence's start is zero whatever the ring and the state hold.
Legend: T rows, K taps, C channels, Hk key heads, H value heads, d and v head dims.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import sigmoid, silu, wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2


@triton.jit
def _convolved(
    projected, ring, taps, position, channel, share, CHANNELS: tl.constexpr, NUM_TAPS: tl.constexpr, BLOCK: tl.constexpr
):
    """silu of the sum over the last NUM_TAPS inputs of these channels.

    Of the blocks that share the channels, number 0 puts the new input into the ring. (A scalar's condition is widened
    as a number, since the interpreter does not take a scalar as the mask of a block.) The old inputs are one block:
    alone, each would be so small that Triton loads it once for every layout that it is used in.
    """
    tap = tl.arange(0, BLOCK)  # oldest first
    age = NUM_TAPS - 1 - tap
    here = channel[None, :] >= 0
    old_at = ring + (position + tap + 1) % NUM_TAPS * CHANNELS
    old = tl.load(old_at[:, None] + channel[None, :], mask=((age > 0) & (position >= age))[:, None] & here, other=0.0)
    weights = tl.load(taps + tap[:, None] * CHANNELS + channel[None, :], mask=(age > 0)[:, None] & here, other=0.0)
    new = tl.load(projected + channel)
    newest = new.to(tl.float32) * tl.load(taps + (NUM_TAPS - 1) * CHANNELS + channel).to(tl.float32)
    tl.store(ring + position % NUM_TAPS * CHANNELS + channel, new, mask=share + 0 * channel == 0)
    return silu(tl.sum(old.to(tl.float32) * weights.to(tl.float32), 0) + newest)


@triton.jit
def _unit(x):
    return x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)


@triton.jit
def _delta_step(
    projected,
    ring,
    taps,
    decay_rate,
    dt_bias,
    state,
    slots,
    positions,
    norm_weight,
    out,
    projected_stride,
    NUM_KEY_HEADS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    NUM_TAPS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NORMED: tl.constexpr,
    EPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row, one value head, BLOCK_V of its values."""
    v_block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys: tl.constexpr = NUM_KEY_HEADS * KEY_DIM
    channels: tl.constexpr = 2 * keys + NUM_HEADS * VALUE_DIM
    d = tl.arange(0, KEY_DIM)
    v_at = head * VALUE_DIM + v_block * BLOCK_V + tl.arange(0, BLOCK_V)
    slot, position = tl.load(slots + row).to(tl.int64), tl.load(positions + row)
    # The state is a step old: it is read before the wait.
    state_at = state + (slot * NUM_HEADS * KEY_DIM + head * KEY_DIM + d)[:, None] * VALUE_DIM
    state_at += (v_block * BLOCK_V + tl.arange(0, BLOCK_V))[None, :]
    s = tl.load(state_at, mask=(position + 0 * d > 0)[:, None], other=0.0)
    wait_for_previous(PDL)
    projected += row * projected_stride
    ring += slot * NUM_TAPS * channels
    key_head = head // (NUM_HEADS // NUM_KEY_HEADS)
    share = v_block + head % (NUM_HEADS // NUM_KEY_HEADS)
    key_at = key_head * KEY_DIM + d
    q = (
        _unit(_convolved(projected, ring, taps, position, key_at, share, channels, NUM_TAPS, BLOCK_TAPS))
        * KEY_DIM**-0.5
    )
    k = _unit(_convolved(projected, ring, taps, position, keys + key_at, share, channels, NUM_TAPS, BLOCK_TAPS))
    v = _convolved(projected, ring, taps, position, 2 * keys + v_at, 0, channels, NUM_TAPS, BLOCK_TAPS)
    gates = projected + channels + NUM_HEADS * VALUE_DIM + head
    beta = sigmoid(tl.load(gates).to(tl.float32))
    x = tl.load(gates + NUM_HEADS).to(tl.float32) + tl.load(dt_bias + head)
    softplus = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))
    decay = tl.exp(tl.load(decay_rate + head) * softplus)
    update = (v - tl.sum(s * k[:, None], 0) * decay) * beta
    o = tl.sum(s * q[:, None], 0) * decay + tl.sum(q * k, 0) * update
    tl.store(state_at, s * decay + k[:, None] * update[None, :])
    if NORMED:
        o = o.to(out.dtype.element_ty).to(tl.float32)  # rounded where the other form stores
        z = tl.load(projected + channels + v_at).to(tl.float32)
        scale = tl.load(norm_weight + tl.arange(0, BLOCK_V))
        o = o * tl.rsqrt(tl.sum(o * o, 0) / VALUE_DIM + EPS) * scale * silu(z)
    tl.store(out + row * NUM_HEADS * VALUE_DIM + v_at, o.to(out.dtype.element_ty))


def delta_step(
    projected: torch.Tensor,
    ring: torch.Tensor,
    taps: torch.Tensor,
    decay_rate: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    norm_weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    tile: Tile,
) -> None:
    """projected [T, C + H v + 2 H] (q, k, v | z | b | a) -> out [T, H, v]; ring and state of ``slots`` advance.

    ring [slots, K, C] in the model's dtype, taps [K, C] oldest first, decay_rate = -exp(A_log) and dt_bias [H] float32,
    state [slots, H, d, v] float32, slots and positions [T] int32 (no slot twice). d and v are powers of two.
    Form ``normed`` (a block is a whole head): out is already ``gated_norm``'s, with norm_weight [v] float32 and z;
    form ``plain``: that norm comes after, in its own launch or in the next projection's prologue.
    """
    (_, heads, key_dim, value_dim), (taps_count, channels) = state.shape, taps.shape
    rows, dtype, key_heads = projected.shape[0], projected.dtype, (channels - heads * value_dim) // (2 * key_dim)
    block_v = value_dim if tile.form == "normed" else min(tile["v"], value_dim)
    launch(
        _delta_step,
        (value_dim // block_v, heads, rows),
        tile,
        projected=Operand(projected, (rows, channels + heads * (value_dim + 2)), dtype),
        ring=Operand(ring, (state.shape[0], taps_count, channels), dtype),
        taps=Operand(taps, (taps_count, channels), taps.dtype),
        decay_rate=Operand(decay_rate, (heads,), torch.float32),
        dt_bias=Operand(dt_bias, (heads,), torch.float32),
        state=Operand(state, (state.shape[0], heads, key_dim, value_dim), torch.float32),
        slots=Operand(slots, (rows,), torch.int32),
        positions=Operand(positions, (rows,), torch.int32),
        norm_weight=Operand(norm_weight, (value_dim,), torch.float32),
        out=Operand(out, (rows, heads, value_dim), dtype),
        projected_stride=projected.shape[1],
        NUM_KEY_HEADS=key_heads,
        NUM_HEADS=heads,
        KEY_DIM=key_dim,
        VALUE_DIM=value_dim,
        NUM_TAPS=taps_count,
        BLOCK_TAPS=next_power_of_2(taps_count),
        BLOCK_V=block_v,
        NORMED=tile.form == "normed",
        EPS=eps,
    )
