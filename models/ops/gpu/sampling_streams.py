"""Sampling from a whole vocabulary, pass after pass: for the rows that ``sampling.py`` has left open (token -1).

The same searches as there, each step of a bisection being a pass over the row, which lies in the L2 cache: some 70
passes with top-k and top-p, two without. Chunks are added in their order, so that the draw meets its own sums.
"""

import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.sampling_search import first_above, key_value, sort_key, uniform, weight_of
from splitrank.models.ops.gpu.tiles import Tile

_CHUNK = tl.constexpr(4096)
_HALVINGS = tl.constexpr(32)
_ABOVE_ONE = tl.constexpr(0x3F800001)


@triton.jit
def _chunk(logits, first, VOCABULARY: tl.constexpr):
    at = first + tl.arange(0, _CHUNK)
    return tl.load(logits + at, mask=at < VOCABULARY, other=float("-inf")).to(tl.float32)


@triton.jit
def _kth_of_row(logits, k, VOCABULARY: tl.constexpr):
    low = tl.full([], -2147483648, tl.int64)
    high = tl.full([], 2147483648, tl.int64)
    for _ in range(_HALVINGS):
        middle = (low + high) >> 1
        count = tl.zeros([_CHUNK], tl.int32)
        for first in range(0, VOCABULARY, _CHUNK):
            inside = first + tl.arange(0, _CHUNK) < VOCABULARY
            count += (inside & (sort_key(_chunk(logits, first, VOCABULARY)).to(tl.int64) >= middle)).to(tl.int32)
        enough = tl.sum(count, 0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return key_value(low)


@triton.jit
def _mass_from(logits, best, heat, threshold, bits, VOCABULARY: tl.constexpr):
    """The weight of all tokens of at least ``threshold`` whose weight has at least these bits."""
    mass = tl.zeros([_CHUNK], tl.float64)
    for first in range(0, VOCABULARY, _CHUNK):
        x = _chunk(logits, first, VOCABULARY)
        weights = weight_of(x, best, heat, x >= threshold)
        mass += tl.where(weights.to(tl.int32, bitcast=True) >= bits, weights, 0.0).to(tl.float64)
    return tl.sum(mass, 0)


@triton.jit
def _nucleus_end(logits, best, heat, threshold, top_p, VOCABULARY: tl.constexpr):
    """The bits of the weight at which the nucleus ends, and what is missing when all heavier ones are in."""
    low = tl.full([], 0, tl.int32)
    high = tl.full([], _ABOVE_ONE, tl.int32)
    target = top_p * _mass_from(logits, best, heat, threshold, low, VOCABULARY)
    for _ in range(_HALVINGS):
        middle = low + ((high - low) >> 1)
        enough = _mass_from(logits, best, heat, threshold, middle, VOCABULARY) >= target
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low, target - _mass_from(logits, best, heat, threshold, low + 1, VOCABULARY)


@triton.jit
def _kept(logits, first, best, heat, threshold, end, missing, seen, min_p, VOCABULARY: tl.constexpr):
    """A chunk's weights, 0 for what is left out, and how many tokens at the nucleus' end there are up to its end."""
    x = _chunk(logits, first, VOCABULARY)
    weights = weight_of(x, best, heat, x >= threshold)
    bits = weights.to(tl.int32, bitcast=True)
    equal = bits == end
    place = seen + tl.cumsum(equal.to(tl.int32), 0) - 1
    inside = (bits > end) | (equal & (place * weights.to(tl.float64) < missing))
    weights = tl.where(inside & (weights >= min_p), weights, 0.0)
    return weights, seen + tl.sum(equal.to(tl.int32), 0)


@triton.jit
def _sample_streams(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    tokens,
    largest,
    VOCABULARY: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    draw = uniform(tl.load(seeds + row), tl.load(positions + row))
    wait_for_previous(PDL)
    if tl.load(tokens + row) == -1:
        logits += row * VOCABULARY
        best, heat, k = tl.load(largest + row), tl.load(temperature + row), tl.load(top_k + row)
        p, least = tl.load(top_p + row), tl.load(min_p + row)
        threshold = tl.full([], float("-inf"), tl.float32)
        if (k > 0) & (k < VOCABULARY):
            threshold = _kth_of_row(logits, k, VOCABULARY)
        end = tl.full([], -1, tl.int32)  # all weights are above
        missing = tl.full([], 0.0, tl.float64)
        if p < 1.0:
            end, missing = _nucleus_end(logits, best, heat, threshold, p, VOCABULARY)
        whole = tl.full([], 0.0, tl.float64)
        seen = tl.full([], 0, tl.int32)
        for first in range(0, VOCABULARY, _CHUNK):
            weights, seen = _kept(logits, first, best, heat, threshold, end, missing, seen, least, VOCABULARY)
            whole += tl.sum(weights.to(tl.float64), 0)
        target = draw * whole
        token = tl.full([], 0, tl.int32)
        before = tl.full([], 0.0, tl.float64)
        seen = tl.full([], 0, tl.int32)
        for first in range(0, VOCABULARY, _CHUNK):
            weights, seen = _kept(logits, first, best, heat, threshold, end, missing, seen, least, VOCABULARY)
            after = before + tl.sum(weights.to(tl.float64), 0)
            # The last chunk that begins at or below the target and has a weight: rounding may leave none above it.
            if (after > before) & (before <= target):
                token = first + first_above(weights, before, target)
            before = after
        tl.store(tokens + row, token)


def sample_streams(
    logits: dict[str, Operand],
    params: dict[str, Operand],
    results: dict[str, Operand],
    vocabulary: int,
    tile: Tile,
) -> None:
    """The rows whose token is -1; ``results`` has tokens and the largest logits."""
    rows = results["tokens"].shape
    launch(_sample_streams, rows, tile, **logits, **params, **results, VOCABULARY=vocabulary)
