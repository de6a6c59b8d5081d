"""The mixture of experts for two rows and more, over the pairs that ``route`` has sorted by expert.

A block takes one expert's tile of tokens and a block of its weight's rows, so a weight is read once for all its tokens.
Each pair's output, times its weight, goes to its slot; the next norm adds a token's slots in their order. No atomics.
Legend: T tokens, E experts, k experts a token, H hidden size, I and S inner widths of an expert and of the shared one.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import dot, sigmoid, silu, wait_for_previous
from splitrank.models.ops.gpu.routing import Routing
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div, next_power_of_2


@triton.jit
def weight_block(rows, start, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns start + k of the rows at pointers ``rows`` [n] -> [n, BLOCK_K]."""
    at = rows[:, None] + (start + k)[None, :]
    return tl.load(at) if K % BLOCK_K == 0 else tl.load(at, mask=(start + k < K)[None, :], other=0.0)


@triton.jit
def token_block(rows, start, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The same, transposed: [BLOCK_K, t]."""
    at = rows[None, :] + (start + k)[:, None]
    return tl.load(at) if K % BLOCK_K == 0 else tl.load(at, mask=(start + k < K)[:, None], other=0.0)


@triton.jit(do_not_specialize=["num_rows", "max_tiles"])
def _experts_up(
    logits,
    x,
    gate_up,
    act,
    slots,
    tiles,
    num_rows,
    max_tiles,
    logits_stride,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    K: tl.constexpr,
    INNER: tl.constexpr,
    SHARED: tl.constexpr,
    ACT_WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (ACT_WIDTH + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    wait_for_previous(PDL)
    expert = tl.load(tiles + tile)
    if expert >= 0:
        place = tl.load(tiles + max_tiles + tile) + tl.arange(0, BLOCK_T)
        end = tl.load(tiles + 2 * max_tiles + tile)
        to = act + place[None, :] * ACT_WIDTH + i[:, None]
        if expert == NUM_EXPERTS:
            gates = logits + (tl.minimum(place, end - 1) - num_rows * TOP_K) * logits_stride + NUM_EXPERTS
            inside = (i < SHARED)[:, None] & (place < end)[None, :]
            at = gates[None, :] + 1 + i[:, None]
            gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(at + SHARED, mask=inside, other=0.0).to(tl.float32)
            shared = silu(gate) * up * sigmoid(tl.load(gates).to(tl.float32))[None, :]
            tl.store(to, shared.to(act.dtype.element_ty), mask=inside)
        else:
            token = tl.load(slots + tl.minimum(place, end - 1)) // (TOP_K + 1)
            weight = gate_up + expert.to(tl.int64) * (2 * INNER * K)
            value = _gate_times_up(x + token * K, weight, i, K, INNER, BLOCK_N, BLOCK_K, BLOCK_T)
            inside = (i < INNER)[:, None] & (place < end)[None, :]
            tl.store(to, value.to(act.dtype.element_ty), mask=inside)


@triton.jit
def _gate_times_up(
    x_rows,
    weight,
    i,
    K: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """silu(gate) * up of one expert: x_rows [t] pointers, weight [2 INNER, K] -> [i, t]."""
    k = tl.arange(0, BLOCK_K)
    gate_rows = weight + tl.minimum(i, INNER - 1) * (2 * K)
    gate = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for start in range(0, K, BLOCK_K):
        gate_block = weight_block(gate_rows, start, k, K, BLOCK_K)
        up_block = weight_block(gate_rows + K, start, k, K, BLOCK_K)
        tokens = token_block(x_rows, start, k, K, BLOCK_K)  # last: its addresses take longer to know
        gate = dot(gate_block, tokens, gate)
        up = dot(up_block, tokens, up)
    return silu(gate) * up


def experts_up(
    logits: torch.Tensor,
    x: torch.Tensor,
    gate_up: torch.Tensor,
    shared_inner: int,
    routing: Routing,
    act: torch.Tensor,
    tile: Tile,
    block_t: int,
) -> None:
    """logits [T, N] (of ``pack_router``), x [T, H], gate_up [E, 2I, H] (interleaved) -> act [T (k + 1), max(I, S)].

    ``act`` is in the order of the list. The shared expert's rows, whose gate and up values are among the logits, come
    last. ``block_t``: tokens of a tile, as ``route`` had it.
    """
    (num_experts, wide, width), dtype, (rows, columns), top_k = gate_up.shape, x.dtype, logits.shape, routing.top_k
    inner = wide // 2
    act_width = max(inner, shared_inner)
    launch(
        _experts_up,
        (routing.max_tiles * ceil_div(act_width, tile["n"]),),
        tile,
        logits=Operand(logits, (rows, columns), dtype),
        x=Operand(x, (rows, width), dtype),
        gate_up=Operand(gate_up, (num_experts, wide, width), dtype),
        act=Operand(act, (rows * (top_k + 1), act_width), dtype),
        **_list_operands(routing, rows),
        num_rows=rows,
        max_tiles=routing.max_tiles,
        logits_stride=columns,
        NUM_EXPERTS=num_experts,
        TOP_K=top_k,
        K=width,
        INNER=inner,
        SHARED=shared_inner,
        ACT_WIDTH=act_width,
        BLOCK_N=tile["n"],
        BLOCK_K=block_of(width, tile),
        BLOCK_T=block_t,
    )


def block_of(width: int, tile: Tile) -> int:
    """Columns of a weight a step: the tile's, or what a narrow weight has (at least 16: a product's smallest)."""
    return min(tile["k"], max(16, next_power_of_2(width)))


def _list_operands(routing: Routing, rows: int) -> dict[str, Operand]:
    return {
        "slots": Operand(routing.slots, (rows * (routing.top_k + 1),), torch.int32),
        "tiles": Operand(routing.tiles, (3, routing.max_tiles), torch.int32),
    }


@triton.jit(do_not_specialize=["max_tiles"])
def _experts_down(
    act,
    down,
    shared_down,
    weights,
    out,
    slots,
    tiles,
    N,
    max_tiles,
    NUM_EXPERTS: tl.constexpr,
    INNER: tl.constexpr,
    SHARED: tl.constexpr,
    ACT_WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    SHARDS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of tokens, CHUNK of the output's columns. Each of SHARDS runs of inner columns has parts of its own."""
    chunks = tl.cdiv(N, CHUNK)
    tile = tl.program_id(0) // chunks
    first = tl.program_id(0) % chunks * CHUNK
    expert = tl.load(tiles + tile)  # the list is two launches old: read before the wait
    place = tl.load(tiles + max_tiles + tile) + tl.arange(0, BLOCK_T)
    end = tl.load(tiles + 2 * max_tiles + tile)
    wait_for_previous(PDL)
    if expert >= 0:
        slot = tl.load(slots + tl.minimum(place, end - 1))
        mass = tl.load(weights + slot)
        to = out + (slot + slot // PARTS * ((SHARDS - 1) * PARTS)).to(tl.int64) * N
        rows = act + tl.minimum(place, end - 1) * ACT_WIDTH
        for shard in tl.static_range(SHARDS):
            if INNER == SHARED:
                base = down + expert.to(tl.int64) * N * INNER
                if expert == NUM_EXPERTS:
                    base = shared_down
                at = shard * (INNER // SHARDS)
                _stream(
                    base + at, rows + at, mass, to, place < end, first, N,
                    INNER, INNER // SHARDS, BLOCK_K, BLOCK_N, CHUNK, WHOLE,
                )  # fmt: skip
            elif expert == NUM_EXPERTS:
                at = shard * (SHARED // SHARDS)
                _stream(
                    shared_down + at, rows + at, mass, to, place < end, first, N,
                    SHARED, SHARED // SHARDS, BLOCK_K, BLOCK_N, CHUNK, WHOLE,
                )  # fmt: skip
            else:
                at = shard * (INNER // SHARDS)
                _stream(
                    down + expert.to(tl.int64) * N * INNER + at, rows + at, mass, to, place < end, first, N,
                    INNER, INNER // SHARDS, BLOCK_K, BLOCK_N, CHUNK, WHOLE,
                )  # fmt: skip
            to += PARTS * N


@triton.jit
def _stream(
    weight,
    act_rows,
    mass,
    to,
    exists,
    first,
    N,
    ROW: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Rows first .. first + CHUNK of weight [N, K], ROW apart, times act_rows [t] pointers to K values, times mass [t]
    -> to."""
    if WHOLE:
        _stream_whole_rows(weight, act_rows, mass, to, exists, first, N, ROW, K, BLOCK_K, BLOCK_N, CHUNK)
    else:
        _stream_blocks(weight, act_rows, mass, to, exists, first, N, ROW, K, BLOCK_K, BLOCK_N, CHUNK)


@triton.jit
def _stream_whole_rows(
    weight,
    act_rows,
    mass,
    to,
    exists,
    first,
    N,
    ROW: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The tokens' values stay; whole rows of the weight stream past them."""
    k = tl.arange(0, BLOCK_K)
    tokens = token_block(act_rows, 0, k, K, BLOCK_K)
    for start in range(first, first + CHUNK, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        rows = weight_block(weight + tl.minimum(n, N - 1).to(tl.int64) * ROW, 0, k, K, BLOCK_K)
        y = dot(rows, tokens, tl.zeros([BLOCK_N, tokens.shape[1]], tl.float32))
        _store_weighted(y, n, mass, to, exists, N)


@triton.jit
def _stream_blocks(
    weight,
    act_rows,
    mass,
    to,
    exists,
    first,
    N,
    ROW: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Blocks of the weight in one loop, row block by row block: small ones, so that more programs fit."""
    k = tl.arange(0, BLOCK_K)
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    y = tl.zeros([BLOCK_N, exists.shape[0]], tl.float32)
    for step in range(CHUNK // BLOCK_N * STEPS):
        n = first + step // STEPS * BLOCK_N + tl.arange(0, BLOCK_N)
        start = step % STEPS * BLOCK_K
        rows = weight_block(weight + tl.minimum(n, N - 1).to(tl.int64) * ROW, start, k, K, BLOCK_K)
        y = dot(rows, token_block(act_rows, start, k, K, BLOCK_K), y)
        if step % STEPS == STEPS - 1:
            _store_weighted(y, n, mass, to, exists, N)
            y = tl.zeros([BLOCK_N, exists.shape[0]], tl.float32)


@triton.jit
def _store_weighted(y, n, mass, to, exists, N):
    at = to[None, :] + n[:, None]
    value = y * mass[None, :]
    tl.store(at, value.to(to.dtype.element_ty), mask=exists[None, :] & (n < N)[:, None])


def experts_down(
    act: torch.Tensor,
    down: torch.Tensor,
    shared_down: torch.Tensor,
    routing: Routing,
    out: torch.Tensor,
    tile: Tile,
    block_t: int,
    shards: int = 1,
) -> None:
    """act [T (k + 1), max(I, S)], down [E, H, I], shared_down [H, S] -> out [T, k + 1, H], for the next norm to add.

    With ``shards``, out [T, shards (k + 1), H]: those of each run of inner columns, one run after the other. Parts of
    padded rows are not written. Form ``dot`` reads whole rows of ``down``, ``blocks`` blocks of them.
    """
    (num_experts, width, inner), shared_inner, dtype = down.shape, shared_down.shape[1], act.dtype
    rows, parts, act_width, chunk = out.shape[0], routing.top_k + 1, max(inner, shared_inner), tile["chunk"]
    launch(
        _experts_down,
        (routing.max_tiles * ceil_div(width, chunk),),
        tile,
        act=Operand(act, (rows * parts, act_width), dtype),
        down=Operand(down, (num_experts, width, inner), dtype),
        shared_down=Operand(shared_down, (width, shared_inner), dtype),
        weights=Operand(routing.weights, (rows, parts), torch.float32),
        out=Operand(out, (rows, shards * parts, width), dtype),
        **_list_operands(routing, rows),
        N=width,
        max_tiles=routing.max_tiles,
        NUM_EXPERTS=num_experts,
        INNER=inner,
        SHARED=shared_inner,
        ACT_WIDTH=act_width,
        PARTS=parts,
        SHARDS=shards,
        BLOCK_K=block_of(act_width // shards, tile)
        if tile.form == "blocks"
        else max(16, next_power_of_2(act_width // shards)),
        WHOLE=tile.form != "blocks",
        BLOCK_N=tile["n"],
        BLOCK_T=block_t,
        CHUNK=chunk,
    )
