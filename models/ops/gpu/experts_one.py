"""The mixture of experts for one row: no list is sorted, every block finds its expert among the router's logits itself.

Two launches: gate, up and silu, then the weighted sum over the chosen experts and the shared one, in the order of
likelihood. Legend: E experts, k chosen ones, H hidden size, I and S inner widths of an expert and of the shared one.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import sigmoid, silu, wait_for_previous
from splitrank.models.ops.gpu.projection import product_with_row, whole_rows
from splitrank.models.ops.gpu.routing import Routing, key_expert, key_logit, routing_keys
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div, next_power_of_2


@triton.jit
def _experts_up_one(
    logits,
    x,
    gate_up,
    act,
    chosen,
    weights,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TOP_K: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INNER: tl.constexpr,
    SHARED: tl.constexpr,
    ACT_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    place = tl.program_id(0)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.arange(0, BLOCK_E)
    wait_for_previous(PDL)
    keys = routing_keys(logits + expert, expert, expert < NUM_EXPERTS, NUM_EXPERTS)
    if place == TOP_K:
        if tl.program_id(1) == 0:
            _store_choice(keys, chosen, weights, NUM_EXPERTS, TOP_K)
        gate = tl.load(logits + NUM_EXPERTS + 1 + i, mask=i < SHARED, other=0.0).to(tl.float32)
        up = tl.load(logits + NUM_EXPERTS + 1 + SHARED + i, mask=i < SHARED, other=0.0).to(tl.float32)
        value = silu(gate) * up * sigmoid(tl.load(logits + NUM_EXPERTS).to(tl.float32))
        tl.store(act + TOP_K * ACT_WIDTH + i, value.to(act.dtype.element_ty), mask=i < SHARED)
    else:
        top = tl.max(keys, 0)
        for _ in range(place):
            keys = tl.where(keys == top, -1, keys)
            top = tl.max(keys, 0)
        rows = gate_up + key_expert(top, NUM_EXPERTS).to(tl.int64) * (2 * INNER * K)
        gate_rows = whole_rows(rows, 2 * i, 2 * INNER, K, BLOCK_K)
        up_rows = whole_rows(rows, 2 * i + 1, 2 * INNER, K, BLOCK_K)
        gate = product_with_row(gate_rows, x, 0, K, BLOCK_K)
        value = silu(gate) * product_with_row(up_rows, x, 0, K, BLOCK_K)
        tl.store(act + place * ACT_WIDTH + i, value.to(act.dtype.element_ty), mask=i < INNER)


@triton.jit
def _store_choice(keys, chosen, weights, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr):
    """The chosen experts, likeliest first, and their shares; the shared expert's is 1."""
    best = key_logit(tl.max(keys, 0), NUM_EXPERTS)
    rest = keys
    total = 0.0
    for _ in tl.static_range(TOP_K):
        top = tl.max(rest, 0)
        rest = tl.where(rest == top, -1, rest)
        total += tl.exp(key_logit(top, NUM_EXPERTS) - best)
    for place in tl.static_range(TOP_K):
        top = tl.max(keys, 0)
        keys = tl.where(keys == top, -1, keys)
        tl.store(chosen + place, key_expert(top, NUM_EXPERTS))
        tl.store(weights + place, tl.exp(key_logit(top, NUM_EXPERTS) - best) / total)
    tl.store(weights + TOP_K, 1.0)


def experts_up_one(
    logits: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    shared_inner: int,
    routing: Routing,
    act: torch.Tensor,
    tile: Tile,
) -> None:
    """logits [1, N] (of ``pack_router``), x [1, H], gate_up [E, 2I, H] (interleaved) -> act [k + 1, max(I, S)].

    Writes ``routing.chosen`` and ``routing.weights`` for ``experts_down_one``. The last row of ``act`` is the shared
    expert's, whose gate and up values are among the logits.
    """
    (num_experts, rows, width), dtype, top_k = gate_up.shape, x.dtype, routing.top_k
    act_width = max(rows // 2, shared_inner)
    launch(
        _experts_up_one,
        (top_k + 1, ceil_div(act_width, tile["n"])),
        tile,
        logits=Operand(logits, (1, logits.shape[1]), dtype),
        x=Operand(x, (1, width), dtype),
        gate_up=Operand(gate_up, (num_experts, rows, width), dtype),
        act=Operand(act, (top_k + 1, act_width), dtype),
        chosen=Operand(routing.chosen, (1, top_k), torch.int32),
        weights=Operand(routing.weights, (1, top_k + 1), torch.float32),
        NUM_EXPERTS=num_experts,
        BLOCK_E=next_power_of_2(num_experts),
        TOP_K=top_k,
        K=width,
        BLOCK_K=next_power_of_2(width),
        INNER=rows // 2,
        SHARED=shared_inner,
        ACT_WIDTH=act_width,
        BLOCK_N=tile["n"],
    )


@triton.jit
def _experts_down_one(
    act,
    chosen,
    weights,
    down,
    shared_down,
    out,
    N,
    TOP_K: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_I: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ACT_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tl.arange(0, BLOCK_I)
    shared_rows = whole_rows(shared_down, n, N, SHARED, BLOCK_S)
    wait_for_previous(PDL)
    acc = tl.zeros([BLOCK_N, BLOCK_I], tl.float32)
    for place in tl.static_range(TOP_K):
        expert = tl.load(chosen + place).to(tl.int64)
        rows = whole_rows(down + expert * N * INNER, n, N, INNER, BLOCK_I)
        values = tl.load(act + place * ACT_WIDTH + i, mask=i < INNER, other=0.0).to(tl.float32)
        acc += rows.to(tl.float32) * (values * tl.load(weights + place))[None, :]
    i = tl.arange(0, BLOCK_S)
    values = tl.load(act + TOP_K * ACT_WIDTH + i, mask=i < SHARED, other=0.0).to(tl.float32)
    shared = shared_rows.to(tl.float32) * values[None, :]
    y = tl.sum(acc + shared, 1) if BLOCK_I == BLOCK_S else tl.sum(acc, 1) + tl.sum(shared, 1)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=n < N)


def experts_down_one(
    act: torch.Tensor,
    down: torch.Tensor,
    shared_down: torch.Tensor,
    routing: Routing,
    out: torch.Tensor,
    tile: Tile,
) -> None:
    """act [k + 1, max(I, S)], down [E, H, I], shared_down [H, S] -> out [1, H], the weighted sum of k + 1 products."""
    (num_experts, width, inner), shared_inner, dtype = down.shape, shared_down.shape[1], act.dtype
    top_k, act_width = routing.top_k, max(inner, shared_inner)
    launch(
        _experts_down_one,
        (ceil_div(width, tile["n"]),),
        tile,
        act=Operand(act, (top_k + 1, act_width), dtype),
        chosen=Operand(routing.chosen, (1, top_k), torch.int32),
        weights=Operand(routing.weights, (1, top_k + 1), torch.float32),
        down=Operand(down, (num_experts, width, inner), dtype),
        shared_down=Operand(shared_down, (width, shared_inner), dtype),
        out=Operand(out, (1, width), dtype),
        N=width,
        TOP_K=top_k,
        INNER=inner,
        BLOCK_I=next_power_of_2(inner),
        SHARED=shared_inner,
        BLOCK_S=next_power_of_2(shared_inner),
        ACT_WIDTH=act_width,
        BLOCK_N=tile["n"],
    )
