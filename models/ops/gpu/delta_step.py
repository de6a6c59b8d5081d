"""One token of each row through a DeltaNet layer's middle: convolution, gates, unit lengths, gated delta rule.

S <- exp(g) S;  S <- S + k u^T with u = beta (v - k^T S);  o = q^T S;  q and k have length 1, and q is scaled by
1/sqrt(d). State and arithmetic are float32.

The state is read in every step and written at every 8th position (``STATE_PERIOD``), since to write it costs as much as
to read it, and a step's update is only k and u. Positions in between leave theirs in ``pending``, with G, the sum of
log decays since the state was written. With S_0 the written state and i the positions since then,

    x^T S = exp(G) x^T S_0 + sum_i exp(G - G_i) (x.k_i) u_i        for x = k and x = q,

and the step that writes adds all updates up. At positions that are multiples of 8 nothing is pending, and what a prompt
leaves behind, wherever it ends, is a whole state (``delta_chunk``). So it is the position alone that decides how a row
is computed. (ReplaySSM in vLLM's #48792 has the same idea with a period of 16.)

Two forms: ``together``, one launch, and ``apart``, with ``delta_inputs`` before it, for more rows.
Legend: T rows, K taps, C channels, Hk key heads, H value heads, d and v head dims.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.delta_inputs import (
    StepInputs,
    arguments_of_step,
    convolved,
    delta_inputs,
    gates_of,
    unit,
)
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile


@triton.jit
def _advance(
    s, k, q, by_keys, by_queries, own, v, beta, log_decay, updates, decays, age,
    state_at, pending, key_at, value_at, decay_at, is_first,
    WIDTH: tl.constexpr, PERIOD: tl.constexpr, KEEPS_KEYS: tl.constexpr,
):  # fmt: skip
    """One position of a head's values [v]: its output, and what it leaves in ``pending`` or the state.

    s [d, v] the state as it was last written; by_keys, by_queries [8] the products of k and q with the pending keys,
    own that of q with k; updates [8, v] and decays [8] what is pending, zeros from ``age`` on.
    """
    i = tl.arange(0, PERIOD)
    since = tl.sum(tl.where(i == age - 1, decays, 0.0), 0) + log_decay  # since the state was written
    shares = tl.exp(since - decays)
    seen = tl.sum(s * k[:, None], 0) * tl.exp(since) + tl.sum((by_keys * shares)[:, None] * updates, 0)
    out = tl.sum(s * q[:, None], 0) * tl.exp(since) + tl.sum((by_queries * shares)[:, None] * updates, 0)
    update = (v - seen) * beta
    if age == PERIOD - 1:
        s = s * tl.exp(since) + k[:, None] * update[None, :]
        for past in tl.range(0, PERIOD - 1, loop_unroll_factor=1):
            at = pending + past * WIDTH
            key = tl.load(at + key_at) * tl.exp(since - tl.load(at + decay_at))
            s += key[:, None] * tl.load(at + value_at)[None, :]
        tl.store(state_at, s)
    else:
        at = pending + age * WIDTH
        if KEEPS_KEYS:
            tl.store(at + key_at, k, mask=is_first + 0 * key_at > 0)
        tl.store(at + value_at, update)
        tl.store(at + decay_at, since)
    return out + own * update


@triton.jit
def _delta_step(
    projected, ring, taps, decay_rate, dt_bias, vectors, products, values, gates, state, pending, slots, positions, out,
    projected_stride,
    NUM_KEY_HEADS: tl.constexpr, NUM_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    NUM_TAPS: tl.constexpr, BLOCK_TAPS: tl.constexpr, BLOCK_V: tl.constexpr, PERIOD: tl.constexpr,
    APART: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, one value head, BLOCK_V of its values."""
    v_block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group: tl.constexpr = NUM_HEADS // NUM_KEY_HEADS
    keys: tl.constexpr = NUM_KEY_HEADS * KEY_DIM
    channels: tl.constexpr = 2 * keys + NUM_HEADS * VALUE_DIM
    width: tl.constexpr = keys + NUM_HEADS * (VALUE_DIM + 1)
    d, e, i = tl.arange(0, KEY_DIM), v_block * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, PERIOD)
    slot, position = tl.load(slots + row).to(tl.int64), tl.load(positions + row)
    age = position % PERIOD
    # The state and what is pending are a step old: they are read before the wait. Padding, at position 0, has neither.
    state_at = state + (slot * NUM_HEADS * KEY_DIM + head * KEY_DIM + d)[:, None] * VALUE_DIM + e[None, :]
    s = tl.load(state_at, mask=(position + 0 * d > 0)[:, None], other=0.0)
    pending += slot * ((PERIOD - 1) * width)
    key_at, value_at, decay_at = head // group * KEY_DIM + d, keys + head * VALUE_DIM + e, width - NUM_HEADS + head
    updates = tl.load(pending + i[:, None] * width + value_at[None, :], mask=(i < age)[:, None], other=0.0)
    decays = tl.load(pending + i * width + decay_at, mask=i < age, other=0.0)
    if APART:
        wait_for_previous(PDL)
        at = row * NUM_KEY_HEADS + head // group
        k, q = tl.load(vectors + at * 2 * KEY_DIM + d), tl.load(vectors + (at * 2 + 1) * KEY_DIM + d)
        by_keys = tl.load(products + at * 2 * PERIOD + i)
        by_queries = tl.load(products + (at * 2 + 1) * PERIOD + i)
        own = tl.load(products + (at * 2 + 2) * PERIOD - 1)
        v = tl.load(values + (row * NUM_HEADS + head) * VALUE_DIM + e)
        beta = tl.load(gates + (row * NUM_HEADS + head) * 2)
        log_decay = tl.load(gates + (row * NUM_HEADS + head) * 2 + 1)
    else:
        past_keys = tl.load(pending + i[:, None] * width + key_at[None, :], mask=(i < age)[:, None], other=0.0)
        wait_for_previous(PDL)
        projected += row * projected_stride
        ring += slot * NUM_TAPS * channels
        share = v_block + head % group
        q = unit(convolved(projected, ring, taps, position, key_at, share, channels, NUM_TAPS, BLOCK_TAPS))
        q *= KEY_DIM**-0.5
        k = unit(convolved(projected, ring, taps, position, keys + key_at, share, channels, NUM_TAPS, BLOCK_TAPS))
        v_at = 2 * keys + head * VALUE_DIM + e
        v = convolved(projected, ring, taps, position, v_at, 0, channels, NUM_TAPS, BLOCK_TAPS)
        by_keys, by_queries = tl.sum(past_keys * k[None, :], 1), tl.sum(past_keys * q[None, :], 1)
        own = tl.sum(q * k, 0)
        beta, log_decay = gates_of(projected + channels + NUM_HEADS * VALUE_DIM, decay_rate, dt_bias, head, NUM_HEADS)
    is_first = tl.where(v_block + head % group == 0, 1, 0)  # of the blocks that share the key
    o = _advance(
        s, k, q, by_keys, by_queries, own, v, beta, log_decay, updates, decays, age,
        state_at, pending, key_at, value_at, decay_at, is_first, width, PERIOD, not APART,
    )  # fmt: skip
    tl.store(out + (row * NUM_HEADS + head) * VALUE_DIM + e, o.to(out.dtype.element_ty))


def delta_step(
    projected: torch.Tensor,
    ring: torch.Tensor,
    taps: torch.Tensor,
    decay_rate: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    pending: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    tile: Tile,
    inputs_tile: Tile,
) -> None:
    """projected [T, C + H v + 2 H] (q, k, v | z | b | a) -> out [T, H, v]; what ``slots`` hold advances.

    ring [slots, K, C] in the model's dtype, taps [K, C] oldest first, decay_rate = -exp(A_log) and dt_bias [H] float32,
    state [slots, H, d, v] and pending [slots, 7, Hk d + H v + H] (keys, updates, sums of log decays) float32, slots and
    positions [T] int32 (no slot twice). d and v are powers of two. Rows follow a prompt: at position 0 is padding.
    Form ``apart`` launches ``delta_inputs`` first, with ``inputs_tile``; the gated norm comes after either.
    """
    num_slots, heads, key_dim, value_dim = state.shape
    block_v, is_apart = min(tile["v"], value_dim), tile.form == "apart"
    common = arguments_of_step(
        projected, ring, taps, decay_rate, dt_bias, pending, slots, positions, (heads, key_dim, value_dim)
    )
    made = delta_inputs(common, inputs_tile)._asdict() if is_apart else dict.fromkeys(StepInputs._fields, projected)
    launch(
        _delta_step,
        (value_dim // block_v, heads, len(projected)),
        tile,
        **common,
        **made,
        state=Operand(state, (num_slots, heads, key_dim, value_dim), torch.float32),
        out=Operand(out, (len(projected), heads, value_dim), projected.dtype),
        BLOCK_V=block_v,
        APART=is_apart,
    )
