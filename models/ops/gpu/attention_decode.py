"""One token of each row through an attention layer's middle: q/k norm, rotary, page write, attention, output gate.

A row's context is cut into splits whose length follows from the context alone (``split_length``). Splits are computed
by one program or by many, and merged in their order by the same operations either way: how many programs share a row
changes no bit. Legend: T rows, Hq query heads, Hk kv heads, G query heads a kv head, d head dim, P pages of a table.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.attention_splits import (
    MAX_SPLITS,
    attend_splits,
    load_block,
    merge_partials,
    split_length,
    stream_splits,
)
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import sigmoid, wait_for_previous
from splitrank.models.ops.gpu.rotary import normed_and_rotated
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2

_MAX_SPLITS = tl.constexpr(MAX_SPLITS)


@triton.jit
def _is_last(counter, num_programs):
    """Whether the other programs have stored what they have; the last one sets the counter back."""
    tl.debug_barrier()  # all threads' stores come before the count
    done = tl.atomic_add(counter, 1, sem="acq_rel") == num_programs - 1
    if done:
        tl.store(counter, 0)
    return done


@triton.jit
def _store_gated(out, head, h, d, mass, acc, GROUP: tl.constexpr, DIM: tl.constexpr):
    """acc / mass times the sigmoid of the output gate, which lies behind each head's query."""
    gate = tl.load(head + DIM + d[None, :]).to(tl.float32)
    value = acc / mass[:, None] * sigmoid(gate)
    tl.store(out + h[:, None] * DIM + d[None, :], value.to(out.dtype.element_ty), mask=(h < GROUP)[:, None])


@triton.jit
def _new_token(
    projected,
    k_weight,
    cos_sin,
    d,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    EPS: tl.constexpr,
):
    """The row's key, normed and rotated, and its value, both [1, d]. ``projected``: the row's, from the kv head on."""
    at = projected + 2 * HEADS * DIM + tl.arange(0, 1)[:, None]
    k = normed_and_rotated(at, k_weight, cos_sin, d, DIM, HALF, EPS).to(projected.dtype.element_ty)
    return k, tl.load(at + KV_HEADS * DIM + d[None, :])


@triton.jit
def _write_token(keys, values, table, at, k, v, d, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr):
    """Key and value [1, d] of position ``at`` to its page."""
    page = tl.load(table + at // PAGE).to(tl.int64)
    to = (page * PAGE + at % PAGE) * (KV_HEADS * DIM) + tl.arange(0, 1)[:, None] + d[None, :]
    tl.store(keys + to, k)
    tl.store(values + to, v)


@triton.jit(do_not_specialize=["table_stride"])
def _attention_decode(
    projected,
    q_weight,
    k_weight,
    cos_sin,
    keys,
    values,
    tables,
    positions,
    out,
    partials,
    counters,
    table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr, PARTS: tl.constexpr, COUNTED: tl.constexpr, STREAM: tl.constexpr,
    EPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row and kv head; the grid's last axis is the part."""
    row, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    h, d = tl.arange(0, BLOCK_G), tl.arange(0, DIM)
    keys, values, table = keys + group * DIM, values + group * DIM, tables + row * table_stride
    context = tl.load(positions + row)
    length = split_length(context)
    num_splits = tl.maximum(1, tl.cdiv(context, length))
    if STREAM == 0:
        first = part * length + tl.arange(0, BLOCK_T)  # what is cached is a step old: read before the wait
        k, v = load_block(keys, values, table, first, context, d, KV_HEADS, DIM, PAGE)
    wait_for_previous(PDL)
    if part < num_splits:
        projected, cos_sin = projected + row * ((2 * HEADS + 2 * KV_HEADS) * DIM), cos_sin + row * (2 * HALF)
        new_k, new_v = _new_token(projected + group * DIM, k_weight, cos_sin, d, HEADS, KV_HEADS, DIM, HALF, EPS)
        if part == 0:
            _write_token(keys, values, table, context, new_k, new_v, d, KV_HEADS, DIM, PAGE)
        head = projected + (group * GROUP + tl.minimum(h, GROUP - 1))[:, None] * (2 * DIM)
        q = normed_and_rotated(head, q_weight, cos_sin, d, DIM, HALF, EPS).to(new_k.dtype)
        partial = partials + (row * KV_HEADS + group) * (_MAX_SPLITS * GROUP * (DIM + 2))
        if STREAM:
            mass, acc = stream_splits(
                q, new_k, new_v, keys, values, table, length, context, KV_HEADS, DIM, PAGE, BLOCK_T, STREAM
            )
        else:
            mass, acc = attend_splits(
                q, k, v, new_k, new_v, keys, values, table, part, num_splits, length, context, partial,
                KV_HEADS, GROUP, PAGE, BLOCK_T, PARTS,
            )  # fmt: skip
        to = out + (row * KV_HEADS + group) * (GROUP * DIM)
        if PARTS == 1 or num_splits == 1:
            _store_gated(to, head, h, d, mass, acc, GROUP, DIM)
        else:
            counter = counters + row * KV_HEADS + group
            last = _is_last(counter, tl.minimum(PARTS, num_splits)) if COUNTED else False
            if last:
                mass, acc = merge_partials(partial, num_splits, h, d, GROUP, DIM)
                _store_gated(to, head, h, d, mass, acc, GROUP, DIM)


@triton.jit
def _combine(
    projected,
    positions,
    partials,
    out,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merges the splits in a launch of its own; rows of one split are done."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    h, d = tl.arange(0, BLOCK_G), tl.arange(0, DIM)
    context = tl.load(positions + row)
    num_splits = tl.cdiv(context, split_length(context))
    wait_for_previous(PDL)
    if num_splits > 1:
        projected += row * ((2 * HEADS + 2 * KV_HEADS) * DIM)
        head = projected + (group * GROUP + tl.minimum(h, GROUP - 1))[:, None] * (2 * DIM)
        partial = partials + (row * KV_HEADS + group) * (_MAX_SPLITS * GROUP * (DIM + 2))
        mass, acc = merge_partials(partial, num_splits, h, d, GROUP, DIM)
        _store_gated(out + (row * KV_HEADS + group) * (GROUP * DIM), head, h, d, mass, acc, GROUP, DIM)


@dataclass(frozen=True)
class SplitMemory:
    """What programs that share a row leave for each other; one for all layers of a stage."""

    partials: torch.Tensor  # [T, Hk, MAX_SPLITS, G, d + 2] float32
    counters: torch.Tensor  # [T, Hk] int32, zero between launches


def split_memory(rows: int, heads: int, kv_heads: int, dim: int, device: torch.device) -> SplitMemory:
    shape = (rows, kv_heads, MAX_SPLITS, heads // kv_heads, dim + 2)
    counters = torch.zeros((rows, kv_heads), dtype=torch.int32, device=device)
    return SplitMemory(torch.empty(shape, dtype=torch.float32, device=device), counters)


def attention_decode(
    projected: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos_sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    positions: torch.Tensor,
    memory: SplitMemory,
    out: torch.Tensor,
    eps: float,
    tile: Tile,
) -> None:
    """projected [T, (2 Hq + 2 Hk) d] (each head's query and gate, keys, values) -> out [T, Hq, d]; pages get the token.

    q_weight and k_weight [d] are zero-centred, cos_sin [T, r] of ``rotary.cos_sin``, keys and values [pages, page size,
    Hk, d] in the model's dtype, tables [T, P] int32, positions [T] int32: tokens before this one. No two rows share a
    page that they write. d is a power of two of at least 16. Form ``counted``: the program that ends last merges a
    row's splits; ``apart``: a second launch does, which AMD needs, where a block's barrier does not order its stores.
    """
    (rows, kv_heads, _, group, _), (num_pages, page, _, dim), dtype = memory.partials.shape, keys.shape, projected.dtype
    heads = group * kv_heads
    assert rows == projected.shape[0], f"{rows} rows of memory for {projected.shape[0]}"
    pages = num_pages, page, kv_heads, dim
    shared = {
        "projected": Operand(projected, (rows, (2 * heads + 2 * kv_heads) * dim), dtype),
        "positions": Operand(positions, (rows,), torch.int32),
        "partials": Operand(memory.partials, (rows, kv_heads, MAX_SPLITS, group, dim + 2), torch.float32),
        "out": Operand(out, (rows, heads, dim), dtype),
    }
    parts = 1 if tile.form == "streamed" else tile["parts"]
    sizes = {"HEADS": heads, "KV_HEADS": kv_heads, "DIM": dim, "BLOCK_G": max(16, next_power_of_2(group))}
    launch(
        _attention_decode,
        (rows, kv_heads, parts),
        tile,
        q_weight=Operand(q_weight, (dim,), dtype),
        k_weight=Operand(k_weight, (dim,), dtype),
        cos_sin=Operand(cos_sin, (rows, cos_sin.shape[1]), dtype),
        keys=Operand(keys, pages, dtype),
        values=Operand(values, pages, dtype),
        tables=Operand(tables, (rows, tables.shape[1]), torch.int32, strided=True),
        counters=Operand(memory.counters, (rows, kv_heads), torch.int32),
        table_stride=tables.stride(0),
        HALF=cos_sin.shape[1] // 2,
        PAGE=page,
        BLOCK_T=tile["t"],
        PARTS=parts,
        COUNTED=tile.form == "counted",
        STREAM=tile.num_stages if tile.form == "streamed" else 0,
        EPS=eps,
        **shared,
        **sizes,
    )
    if tile.form == "apart" and parts > 1:
        launch(_combine, (rows, kv_heads), tile, **shared, **sizes)
