"""The next token of each row from its logits: greedy, temperature, top-k, top-p, min-p, and the draw.

``reference.sample_row`` is the specification. A row is a program's work, from the maxima of blocks of 256 logits: the k
best lie in the k blocks with the largest maxima. Rows whose best do not fit into MAX_CANDIDATES (no top-k and a flat
distribution, a large top-k, thousands of ties) are left open, and ``sampling_streams.py`` walks their whole vocabulary.
Legend: S rows, V vocabulary, N blocks.
"""

from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.sampling_search import first_above, kth_largest, nucleus, uniform, weight_of
from splitrank.models.ops.gpu.sampling_streams import sample_streams
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div, next_power_of_2

MAX_SMALL_TOP_K = 256
MAX_CANDIDATES = 2048
_BLOCK = tl.constexpr(256)
_AT_ONCE = tl.constexpr(16)  # blocks that a program reads together
_MAX_CANDIDATES = tl.constexpr(MAX_CANDIDATES)
_MAX_SMALL_TOP_K = tl.constexpr(MAX_SMALL_TOP_K)


_PARAMETER_DTYPES = (torch.float32, torch.int32, torch.float64, torch.float32, torch.int64, torch.int64)


@dataclass(frozen=True)
class SamplingRows:
    """Parameters of S rows, each a tensor [S]. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0
    keep everything. A row's draw is a function of its seed and position."""

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int32
    top_p: torch.Tensor  # float64
    min_p: torch.Tensor  # float32
    seeds: torch.Tensor  # int64
    positions: torch.Tensor  # int64

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Self:
        """Storage for the parameters of ``rows`` rows."""
        return cls(*(torch.empty(rows, dtype=dtype, device=device) for dtype in _PARAMETER_DTYPES))

    def operands(self) -> dict[str, Operand]:
        shape = tuple(self.temperature.shape)
        return {
            name: Operand(tensor, shape, dtype)
            for (name, tensor), dtype in zip(vars(self).items(), _PARAMETER_DTYPES, strict=True)
        }


@triton.jit
def _block_maxima(logits, maxima, VOCABULARY: tl.constexpr, NUM_BLOCKS: tl.constexpr, PDL: tl.constexpr):
    """NaN is above all: a row of it has an infinite best, which the caller sees."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * _AT_ONCE + tl.arange(0, _AT_ONCE)
    at = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    wait_for_previous(PDL)
    x = tl.load(logits + row * VOCABULARY + at, mask=at < VOCABULARY, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    tl.store(maxima + row * NUM_BLOCKS + block, tl.max(x, 1), mask=block < NUM_BLOCKS)


@triton.jit
def _gather(logits, largest, threshold, blocks, ids, values, VOCABULARY: tl.constexpr, NUM_BLOCKS: tl.constexpr):
    """All of a row that is at least ``threshold`` -> ids and values in the order of ids, and how many.

    The first MAX_CANDIDATES are stored. ``blocks`` is scratch; pointers are the row's.
    """
    block = tl.arange(0, largest.shape[0])
    chosen = (largest >= threshold) & (block < NUM_BLOCKS)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(blocks + place, block, mask=chosen)
    num_blocks = tl.sum(chosen.to(tl.int32), 0)
    tl.debug_barrier()  # threads read what others have stored
    count = num_blocks * 0
    i = tl.arange(0, _AT_ONCE * _BLOCK)
    for first in range(0, num_blocks, _AT_ONCE):
        listed = first + i // _BLOCK < num_blocks
        at = tl.load(blocks + first + i // _BLOCK, mask=listed, other=0) * _BLOCK + i % _BLOCK
        x = tl.load(logits + at, mask=listed & (at < VOCABULARY), other=float("-inf")).to(tl.float32)
        taken = (x >= threshold) & (x > float("-inf"))
        to = count + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(ids + to, at, mask=taken & (to < _MAX_CANDIDATES))
        tl.store(values + to, x, mask=taken & (to < _MAX_CANDIDATES))
        count += tl.sum(taken.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def _total_weight(logits, best, temperature, VOCABULARY: tl.constexpr):
    """Of all tokens, in float64."""
    i = tl.arange(0, _AT_ONCE * _BLOCK)
    total = tl.zeros([_AT_ONCE * _BLOCK], tl.float64)
    for first in range(0, VOCABULARY, _AT_ONCE * _BLOCK):
        x = tl.load(logits + first + i, mask=first + i < VOCABULARY, other=float("-inf")).to(tl.float32)
        total += weight_of(x, best, temperature, first + i < VOCABULARY).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _draw(logits, ids, values, count, best, temperature, top_k, top_p, min_p, draw, VOCABULARY: tl.constexpr):
    """From the candidates of a row: its token, or -1 if its nucleus is larger. top_k 0: they are not a top-k."""
    i = tl.arange(0, _MAX_CANDIDATES)
    exists = i < count
    x = tl.load(values + i, mask=exists, other=float("-inf"))
    kept = exists
    if top_k > 0:
        kept = exists & (x >= kth_largest(x, exists, tl.minimum(top_k, count)))
    weights = weight_of(x, best, temperature, kept)
    here = tl.sum(weights.to(tl.float64), 0)
    fits = count == count
    if top_p < 1.0:
        total = here
        if top_k == 0:
            total = _total_weight(logits, best, temperature, VOCABULARY)
        fits = here >= top_p * total
        weights = nucleus(weights, tl.minimum(top_p * total, here))
    weights = tl.where(weights >= min_p, weights, 0.0)
    whole = tl.sum(weights.to(tl.float64), 0)
    token = tl.load(ids + first_above(weights, 0.0, draw * whole))
    return tl.where(fits, token, -1)


@triton.jit
def _sample_candidates(
    logits,
    maxima,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    blocks,
    ids,
    values,
    tokens,
    largest,
    VOCABULARY: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK_BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program a row. Leaves -1 for a row that needs its whole vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK_BLOCKS)
    heat, k, p = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    draw = uniform(tl.load(seeds + row), tl.load(positions + row))
    wait_for_previous(PDL)
    logits += row * VOCABULARY
    tops = tl.load(maxima + row * NUM_BLOCKS + block, mask=block < NUM_BLOCKS, other=float("-inf"))
    best = tl.max(tops, 0)
    tl.store(largest + row, best)
    if k >= VOCABULARY:
        k = 0
    if (heat == 0.0) | (best == float("inf")) | (best == float("-inf")):
        where = tl.min(tl.where(tops == best, block, NUM_BLOCKS), 0) * _BLOCK
        at = where + tl.arange(0, _BLOCK)
        x = tl.load(logits + at, mask=at < VOCABULARY, other=float("-inf")).to(tl.float32)
        tl.store(tokens + row, tl.min(tl.where(x == best, at, VOCABULARY - 1), 0))
    elif (k > _MAX_SMALL_TOP_K) | ((k == 0) & (p >= 1.0)):
        tl.store(tokens + row, -1)
    else:
        # Without a top-k: the 256 best blocks hold a nucleus that is not flat.
        wanted = tl.where(k > 0, k, _MAX_SMALL_TOP_K)
        threshold = kth_largest(tops, block < NUM_BLOCKS, tl.minimum(wanted, NUM_BLOCKS))
        threshold = tl.where(wanted > NUM_BLOCKS, float("-inf"), threshold)
        blocks, ids, values = blocks + row * NUM_BLOCKS, ids + row * _MAX_CANDIDATES, values + row * _MAX_CANDIDATES
        count = _gather(logits, tops, threshold, blocks, ids, values, VOCABULARY, NUM_BLOCKS)
        token = tl.full([], -1, tl.int32)
        if count <= _MAX_CANDIDATES:
            token = _draw(logits, ids, values, count, best, heat, k, p, tl.load(min_p + row), draw, VOCABULARY)
        tl.store(tokens + row, token)


@dataclass(frozen=True)
class SamplingMemory:
    """Scratch of S rows."""

    maxima: torch.Tensor  # [S, N] float32
    blocks: torch.Tensor  # [S, N] int32
    ids: torch.Tensor  # [S, MAX_CANDIDATES] int32
    values: torch.Tensor  # [S, MAX_CANDIDATES] float32


def sampling_memory(rows: int, vocabulary: int, device: torch.device) -> SamplingMemory:
    def empty(width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((rows, width), dtype=dtype, device=device)

    num_blocks = ceil_div(vocabulary, _BLOCK.value)
    maxima, blocks = empty(num_blocks, torch.float32), empty(num_blocks, torch.int32)
    return SamplingMemory(maxima, blocks, empty(MAX_CANDIDATES, torch.int32), empty(MAX_CANDIDATES, torch.float32))


def sample(
    logits: torch.Tensor,
    params: SamplingRows,
    memory: SamplingMemory,
    tokens: torch.Tensor,
    largest: torch.Tensor,
    tile: Tile,
) -> None:
    """logits [S, V] -> tokens [S] int32 and the largest logit of each row, largest [S] float32.

    If the largest is not finite, the row holds NaN or +inf, or nothing but -inf, and its token means nothing.
    """
    (rows, vocabulary), num_blocks = logits.shape, memory.maxima.shape[1]
    read = {"logits": Operand(logits, (rows, vocabulary), logits.dtype)}
    sizes = {"VOCABULARY": vocabulary, "NUM_BLOCKS": num_blocks}
    maxima = {"maxima": Operand(memory.maxima, (rows, num_blocks), torch.float32)}
    launch(_block_maxima, (rows, ceil_div(num_blocks, _AT_ONCE.value)), tile, **read, **maxima, **sizes)
    results = {
        "tokens": Operand(tokens, (rows,), torch.int32),
        "largest": Operand(largest, (rows,), torch.float32),
    }
    launch(
        _sample_candidates,
        (rows,),
        tile,
        **read,
        **maxima,
        **params.operands(),
        blocks=Operand(memory.blocks, (rows, num_blocks), torch.int32),
        ids=Operand(memory.ids, (rows, MAX_CANDIDATES), torch.int32),
        values=Operand(memory.values, (rows, MAX_CANDIDATES), torch.float32),
        **results,
        **sizes,
        BLOCK_BLOCKS=next_power_of_2(num_blocks),
    )
    sample_streams(read, params.operands(), results, vocabulary, tile)
