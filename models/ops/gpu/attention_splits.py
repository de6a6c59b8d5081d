"""Decode attention over a row's context in splits: one by one from registers, or streamed through shared memory.

The legend is that of ``attention_decode.py``, whose program these are parts of.
"""

import triton
import triton.language as tl

from splitrank.models.ops.gpu.primitives import dot

MAX_SPLITS = 32
_MAX_SPLITS = tl.constexpr(MAX_SPLITS)
_SHORTEST_SPLIT = tl.constexpr(64)


@triton.jit
def split_length(context):
    """64 tokens, or the least power of two that leaves MAX_SPLITS splits."""
    length = _SHORTEST_SPLIT
    for _ in tl.static_range(14):
        length = tl.where(context > length * _MAX_SPLITS, length * 2, length)
    return length


@triton.jit
def load_block(keys, values, table, token, context, d, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr):
    """Keys [d, t] and values [t, d] of these tokens; zeros from the context's end on, which nobody has written."""
    known = token < context
    page = tl.load(table + token // PAGE, mask=known, other=0).to(tl.int64)
    at = (page * PAGE + token % PAGE) * (KV_HEADS * DIM)
    k = tl.load(keys + at[None, :] + d[:, None], mask=known[None, :], other=0.0)
    v = tl.load(values + at[:, None] + d[None, :], mask=known[:, None], other=0.0)
    return k, v


@triton.jit
def _nothing(HEADS: tl.constexpr, DIM: tl.constexpr):
    """Maximum, sum and weighted values of no token."""
    best = tl.full([HEADS], float("-inf"), tl.float32)
    return best, tl.zeros([HEADS], tl.float32), tl.zeros([HEADS, DIM], tl.float32)


@triton.jit
def _new_token_alone(q, new_k, new_v, DIM: tl.constexpr):
    """Of the new token, with which a row's first split begins."""
    _, mass, acc = _nothing(q.shape[0], DIM)
    best = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), 1) * DIM**-0.5
    return best, mass + 1.0, acc + new_v.to(tl.float32)


@triton.jit
def _attend(q, k, v, known, best, mass, acc, SCALE: tl.constexpr):
    """One block of tokens into the running maximum, sum and weighted values (online softmax)."""
    scores = dot(q, k, tl.zeros([q.shape[0], k.shape[1]], tl.float32)) * SCALE
    scores = tl.where(known[None, :], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, 1))
    p = tl.exp(scores - new_best[:, None])
    keep = tl.exp(best - new_best)
    return new_best, mass * keep + tl.sum(p, 1), dot(p.to(v.dtype), v, acc * keep[:, None])


@triton.jit
def _merge(best, mass, acc, split_best, split_mass, split_acc):
    """The next split into what those before it give. Written with fma, so that every place that merges rounds alike."""
    new_best = tl.maximum(best, split_best)
    keep = tl.exp(best - new_best)
    take = tl.exp(split_best - new_best)
    acc = tl.fma(acc, tl.broadcast_to(keep[:, None], acc.shape), split_acc * take[:, None])
    return new_best, tl.fma(mass, keep, split_mass * take), acc


@triton.jit
def store_partial(partial, h, d, best, mass, acc, GROUP: tl.constexpr, DIM: tl.constexpr):
    inside = h < GROUP
    tl.store(partial + h[:, None] * DIM + d[None, :], acc, mask=inside[:, None])
    tl.store(partial + GROUP * DIM + h, best, mask=inside)
    tl.store(partial + GROUP * (DIM + 1) + h, mass, mask=inside)


@triton.jit
def merge_partials(partial, num_splits, h, d, GROUP: tl.constexpr, DIM: tl.constexpr):
    """All splits of a row and kv head in their order. Read past the L1 cache: other programs have written them."""
    best, mass, acc = _nothing(h.shape[0], DIM)
    inside = h < GROUP
    for split in range(num_splits):
        one = partial + split * (GROUP * (DIM + 2))
        rows = one + h[:, None] * DIM + d[None, :]
        split_acc = tl.load(rows, mask=inside[:, None], other=0.0, cache_modifier=".cg")
        split_best = tl.load(one + GROUP * DIM + h, mask=inside, other=0.0, cache_modifier=".cg")
        split_mass = tl.load(one + GROUP * (DIM + 1) + h, mask=inside, other=1.0, cache_modifier=".cg")
        best, mass, acc = _merge(best, mass, acc, split_best, split_mass, split_acc)
    return mass, acc


@triton.jit
def _one_split(
    q,
    k,
    v,
    new_k,
    new_v,
    keys,
    values,
    table,
    split,
    length,
    context,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Attention over one split, whose first block (k, v) is loaded; the first split begins with the new token."""
    t = tl.arange(0, BLOCK_T)
    d = tl.arange(0, DIM)
    best, mass, acc = _nothing(q.shape[0], DIM)
    if split == 0:
        best, mass, acc = _new_token_alone(q, new_k, new_v, DIM)
    begin = split * length
    end = tl.minimum(context, begin + length)
    best, mass, acc = _attend(q, k, v, begin + t < end, best, mass, acc, DIM**-0.5)
    for start in range(begin + BLOCK_T, end, BLOCK_T):
        k, v = load_block(keys, values, table, start + t, end, d, KV_HEADS, DIM, PAGE)
        best, mass, acc = _attend(q, k, v, start + t < end, best, mass, acc, DIM**-0.5)
    return best, mass, acc


@triton.jit
def attend_splits(
    q,
    k,
    v,
    new_k,
    new_v,
    keys,
    values,
    table,
    part,
    num_splits,
    length,
    context,
    partial,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Every PARTS-th split from ``part`` on: merged where there is one part, else each to its place in ``partial``."""
    DIM: tl.constexpr = k.shape[0]
    h = tl.arange(0, q.shape[0])
    d = tl.arange(0, DIM)
    t = tl.arange(0, BLOCK_T)
    best, mass, acc = _nothing(q.shape[0], DIM)
    for split in range(part, num_splits, PARTS):
        one_best, one_mass, one_acc = _one_split(
            q, k, v, new_k, new_v, keys, values, table, split, length, context, KV_HEADS, DIM, PAGE, BLOCK_T
        )
        if PARTS > 1:
            at = partial + split * (GROUP * (DIM + 2))
            store_partial(at, h, d, one_best, one_mass, one_acc, GROUP, DIM)
        best, mass, acc = _merge(best, mass, acc, one_best, one_mass, one_acc)
        k, v = load_block(keys, values, table, (split + PARTS) * length + t, context, d, KV_HEADS, DIM, PAGE)
    return mass, acc


@triton.jit
def stream_splits(
    q,
    new_k,
    new_v,
    keys,
    values,
    table,
    length,
    context,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All splits by one program, as ``attend_splits`` gives them; STAGES blocks are on their way at a time."""
    t, d = tl.arange(0, BLOCK_T), tl.arange(0, DIM)
    best, mass, acc = _nothing(q.shape[0], DIM)
    one_best, one_mass, one_acc = _new_token_alone(q, new_k, new_v, DIM)
    for start in tl.range(0, context, BLOCK_T, num_stages=STAGES):
        k, v = load_block(keys, values, table, start + t, context, d, KV_HEADS, DIM, PAGE)
        one_best, one_mass, one_acc = _attend(q, k, v, start + t < context, one_best, one_mass, one_acc, DIM**-0.5)
        if (start + BLOCK_T) % length == 0:
            best, mass, acc = _merge(best, mass, acc, one_best, one_mass, one_acc)
            one_best, one_mass, one_acc = _nothing(q.shape[0], DIM)
    if (context == 0) | (tl.cdiv(context, BLOCK_T) * BLOCK_T % length != 0):
        best, mass, acc = _merge(best, mass, acc, one_best, one_mass, one_acc)
    return mass, acc
