"""What stands between DeltaNet's input projection and its one-step rule: convolution, unit lengths, gates.

The convolution's inputs lie in a ring, position p at p mod K: the place that a step writes is none that another block
of the step reads, which a window shifted in place does not offer. For few rows these functions are the beginning of
``delta_step``; from some rows on they are a launch of their own, since every block of a head's values would repeat
them, in registers that the state needs.
Legend: T rows, K taps, C channels, Hk key heads, H value heads, d and v head dims.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from splitrank.models.layer_shapes import STATE_PERIOD, pending_shape
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import sigmoid, silu, wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2


class StepInputs(NamedTuple):
    """What ``delta_step`` takes of a row, all float32."""

    vectors: torch.Tensor  # [T, Hk, 2, d] keys, and queries scaled by 1/sqrt(d), both of length 1
    products: torch.Tensor  # [T, Hk, 2, 8] of either with the pending keys, last with the own key
    values: torch.Tensor  # [T, H, v]
    gates: torch.Tensor  # [T, H, 2] beta, and the logarithm of the decay


@triton.jit
def convolved(
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
def unit(x):
    return x * tl.rsqrt(tl.sum(x * x, 0) + 1e-6)


@triton.jit
def gates_of(at, decay_rate, dt_bias, head, NUM_HEADS: tl.constexpr):
    """beta and the logarithm of the decay, of b and a at ``at``."""
    x = tl.load(at + NUM_HEADS + head).to(tl.float32) + tl.load(dt_bias + head)
    softplus = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))
    return sigmoid(tl.load(at + head).to(tl.float32)), tl.load(decay_rate + head) * softplus


@triton.jit
def _delta_inputs(
    projected, ring, taps, decay_rate, dt_bias, pending, slots, positions, vectors, products, values, gates,
    projected_stride,
    NUM_KEY_HEADS: tl.constexpr, NUM_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    NUM_TAPS: tl.constexpr, BLOCK_TAPS: tl.constexpr, PERIOD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row; one key head, or behind all of these one value head."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    keys: tl.constexpr = NUM_KEY_HEADS * KEY_DIM
    channels: tl.constexpr = 2 * keys + NUM_HEADS * VALUE_DIM
    slot, position = tl.load(slots + row).to(tl.int64), tl.load(positions + row)
    projected += row * projected_stride
    ring += slot * NUM_TAPS * channels
    if part < NUM_KEY_HEADS:
        width: tl.constexpr = keys + NUM_HEADS * (VALUE_DIM + 1)
        d, i, age = tl.arange(0, KEY_DIM), tl.arange(0, PERIOD), position % PERIOD
        key_at = part * KEY_DIM + d
        pending += slot * ((PERIOD - 1) * width)
        past_keys = tl.load(pending + i[:, None] * width + key_at[None, :], mask=(i < age)[:, None], other=0.0)
        wait_for_previous(PDL)
        q = unit(convolved(projected, ring, taps, position, key_at, 0, channels, NUM_TAPS, BLOCK_TAPS)) * KEY_DIM**-0.5
        k = unit(convolved(projected, ring, taps, position, keys + key_at, 0, channels, NUM_TAPS, BLOCK_TAPS))
        at = row * NUM_KEY_HEADS + part
        tl.store(vectors + at * 2 * KEY_DIM + d, k)
        tl.store(vectors + (at * 2 + 1) * KEY_DIM + d, q)
        tl.store(products + at * 2 * PERIOD + i, tl.sum(past_keys * k[None, :], 1))
        own = tl.where(i == PERIOD - 1, tl.sum(q * k, 0), 0.0)
        tl.store(products + (at * 2 + 1) * PERIOD + i, tl.sum(past_keys * q[None, :], 1) + own)
        if age < PERIOD - 1:
            tl.store(pending + age * width + key_at, k)
    else:
        head = part - NUM_KEY_HEADS
        at, e = row * NUM_HEADS + head, tl.arange(0, VALUE_DIM)
        wait_for_previous(PDL)
        v_at = 2 * keys + head * VALUE_DIM + e
        v = convolved(projected, ring, taps, position, v_at, 0, channels, NUM_TAPS, BLOCK_TAPS)
        tl.store(values + at * VALUE_DIM + e, v)
        beta, log_decay = gates_of(projected + channels + NUM_HEADS * VALUE_DIM, decay_rate, dt_bias, head, NUM_HEADS)
        tl.store(gates + at * 2, beta)
        tl.store(gates + at * 2 + 1, log_decay)


def delta_inputs(common: dict[str, Any], tile: Tile) -> StepInputs:
    """``common`` as of ``arguments_of_step``. The new inputs go into the ring, the key to ``pending``."""
    projected, (rows, _), _ = common["projected"][:3]
    key_heads, heads = common["NUM_KEY_HEADS"], common["NUM_HEADS"]
    sizes = (key_heads, 2, common["KEY_DIM"]), (key_heads, 2, STATE_PERIOD), (heads, common["VALUE_DIM"]), (heads, 2)
    made = StepInputs(*(projected.new_empty((rows, *size), dtype=torch.float32) for size in sizes))
    launch(_delta_inputs, (key_heads + heads, rows), tile, **common, **made._asdict())
    return made


def arguments_of_step(
    projected: torch.Tensor,
    ring: torch.Tensor,
    taps: torch.Tensor,
    decay_rate: torch.Tensor,
    dt_bias: torch.Tensor,
    pending: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    shape: tuple[int, int, int],
) -> dict[str, Any]:
    """What both launches of a step take, from arguments of ``delta_step``; ``shape``: H, d, v."""
    rows, dtype, (taps_count, channels), (heads, key_dim, value_dim) = (
        len(projected),
        projected.dtype,
        taps.shape,
        shape,
    )
    key_heads = (channels - heads * value_dim) // (2 * key_dim)
    return {
        "projected": Operand(projected, (rows, channels + heads * (value_dim + 2)), dtype),
        "ring": Operand(ring, (ring.shape[0], taps_count, channels), dtype),
        "taps": Operand(taps, (taps_count, channels), taps.dtype),
        "decay_rate": Operand(decay_rate, (heads,), torch.float32),
        "dt_bias": Operand(dt_bias, (heads,), torch.float32),
        "pending": Operand(
            pending, (ring.shape[0], *pending_shape(key_heads, key_dim, heads, value_dim)), torch.float32
        ),
        "slots": Operand(slots, (rows,), torch.int32),
        "positions": Operand(positions, (rows,), torch.int32),
        "projected_stride": projected.shape[1],
        "NUM_KEY_HEADS": key_heads,
        "NUM_HEADS": heads,
        "KEY_DIM": key_dim,
        "VALUE_DIM": value_dim,
        "NUM_TAPS": taps_count,
        "BLOCK_TAPS": next_power_of_2(taps_count),
        "PERIOD": STATE_PERIOD,
    }
