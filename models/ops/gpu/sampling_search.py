"""Searches that sampling needs, over values that a block holds: the k-th largest, the nucleus, a draw.

``reference.sample_row`` is their specification: weights exp((logit - best) / temperature) in float32, sums in float64,
ties by the order of ids. All search by bisection, which needs no sort and no order of memory. float32 that is not
negative sorts as its bits do.
"""

import triton
import triton.language as tl

_HALVINGS = tl.constexpr(32)
_ABOVE_ONE = tl.constexpr(0x3F800001)  # the bits of the least float32 above 1, the largest weight


@triton.jit
def sort_key(x):
    """Integers in the order of the float32 x."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def key_value(key):
    """The float32 that ``sort_key`` made ``key`` (int64) of."""
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def kth_largest(x, exists, k):
    """The k-th largest of the x that exist; there are at least k."""
    keys = sort_key(x).to(tl.int64)
    low = tl.full([], -2147483648, tl.int64)
    high = tl.full([], 2147483648, tl.int64)
    for _ in range(_HALVINGS):
        middle = (low + high) >> 1
        enough = tl.sum((exists & (keys >= middle)).to(tl.int32), 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return key_value(low)


@triton.jit
def weight_of(logit, best, temperature, kept):
    """exp((logit - best) / temperature) in float32; 0 for what is not kept. ``best`` is finite."""
    scaled = (logit - best) / tl.maximum(temperature, 1.1754943508222875e-38)
    return tl.where(kept, tl.exp(scaled), 0.0)


@triton.jit
def nucleus(weights, target):
    """The heaviest of ``weights``, as few as weigh ``target`` (float64) together -> what is kept of them."""
    bits = weights.to(tl.int32, bitcast=True)
    mass = weights.to(tl.float64)
    low = tl.full([], 0, tl.int32)
    high = tl.full([], _ABOVE_ONE, tl.int32)
    for _ in range(_HALVINGS):
        middle = low + ((high - low) >> 1)
        enough = tl.sum(tl.where(bits >= middle, mass, 0.0), 0) >= target
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    missing = target - tl.sum(tl.where(bits > low, mass, 0.0), 0)
    equal = bits == low
    place = tl.cumsum(equal.to(tl.int32), 0) - 1
    return tl.where((bits > low) | (equal & (place * mass < missing)), weights, 0.0)


@triton.jit
def first_above(weights, before, target):
    """The first whose weight, added to those before it and to ``before``, exceeds ``target``; the last if none does.

    Only what has a weight counts: a parallel sum of floats need not grow from one to the next.
    """
    at = tl.arange(0, weights.shape[0])
    mass = weights.to(tl.float64)
    reached = before + tl.cumsum(mass, 0)
    hit = tl.min(tl.where((reached > target) & (weights > 0), at, weights.shape[0]), 0)
    last = tl.max(tl.where(weights > 0, at, 0), 0)
    return tl.minimum(hit, last)


@triton.jit
def uniform(seed, position):
    """A multiple of 2^-53 in [0, 1) of seed and position (int64): Philox-4x32-10, the seed its key.

    The position is the first two words of the counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
    """
    zero = (position & 0).to(tl.uint32)
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, low, high, zero, zero)
    return ((first.to(tl.int64) << 21) + (second.to(tl.int64) >> 11)).to(tl.float64) * 1.1102230246251565e-16
