"""The next token of each row: temperature, top-k, top-p, min-p, and a draw by the inverse distribution function.

``reference.sample_row`` is the specification. A kept token weighs exp((logit - best) / temperature), in float32; sums
are float64. The draw walks the kept tokens in the order of their ids, so it does not matter how they were found:

- with a small top-k, all rows together: the k best lie in the k blocks with the largest maxima;
- otherwise row by row, since what is left are passes over the whole vocabulary.

Neither sorts a vocabulary. A row gives the same token alone and among others.
Legend: S rows, V vocabulary, N blocks of B tokens, R rows sampled together, C candidates of a row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCK = 256
MAX_SMALL_TOP_K = 256
MAX_CANDIDATES = 2048  # of a row beside others: more than that are ties


@dataclass(frozen=True)
class SamplingRows:
    """Parameters of S rows, each a tensor [S]. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0
    keep everything."""

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int64
    top_p: torch.Tensor  # float64
    min_p: torch.Tensor  # float32
    uniform: torch.Tensor  # float64 in [0, 1): the draw of each row

    def __getitem__(self, rows: torch.Tensor) -> "SamplingRows":
        return SamplingRows(*(tensor[rows] for tensor in vars(self).values()))


@dataclass(frozen=True)
class Blocks:
    """Logits as blocks, the last one filled up with -inf, and the largest of each. NaN is larger than all."""

    values: torch.Tensor  # [S, N, B]
    maxima: torch.Tensor  # [S, N]

    @classmethod
    def of(cls, logits: torch.Tensor) -> "Blocks":
        values = _in_blocks(logits, -torch.inf)
        return cls(values, values.amax(-1))

    def gather(self, rows: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """Row and block numbers of one shape [...] -> [..., B]."""
        return self.values.flatten(0, 1)[rows * self.maxima.shape[1] + blocks]


def sample(logits: torch.Tensor, params: SamplingRows) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [S, V] in float32 -> a token [S] and the largest logit [S] of each row.

    If the largest is not finite, the row holds NaN or +inf, or nothing but -inf, and its token means nothing.
    """
    blocks, vocab_size = Blocks.of(logits), logits.shape[1]
    tokens, best = _argmax(blocks)
    is_open = (params.temperature > 0) & best.isfinite()
    is_small = (params.top_k > 0) & (params.top_k <= MAX_SMALL_TOP_K) & (params.top_k < vocab_size)
    rows = (is_open & is_small).nonzero().flatten()
    if len(rows):
        done, found = _sample_small_top_k(blocks, best, params, rows)
        tokens[rows] = torch.where(done, found, 0)
        is_open[rows] = ~done
    for row in is_open.nonzero().flatten().tolist():
        tokens[row] = _sample_row(logits[row], best[row], params, row)
    return tokens, best


def greedy(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``sample`` of rows whose temperature is 0, without their parameters."""
    return _argmax(Blocks.of(logits))


def top_k(row: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of [V] and their ids, largest first; of equal ones those with the smaller ids."""
    blocks, rows = Blocks.of(row[None]), torch.zeros(1, dtype=torch.int64, device=row.device)
    threshold = _kth_value(blocks, rows, rows + min(k, len(row)))
    _, ids, values = _at_least(blocks, rows, threshold)
    ordered, order = values.sort(descending=True, stable=True)
    return ordered[:k], ids[order[:k]]


def top_k_rows(logits: torch.Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """``top_k`` of each row of [S, V], together. A row has fewer if fewer of its logits are finite."""
    blocks, rows = Blocks.of(logits), torch.arange(len(logits), device=logits.device)
    row, ids, values = _at_least(blocks, rows, _kth_value(blocks, rows, torch.full_like(rows, min(k, logits.shape[1]))))
    order = values.sort(descending=True, stable=True).indices  # two stable sorts: by row, then value, then id
    order = order[row[order].sort(stable=True).indices]
    counts = torch.bincount(row, minlength=len(rows)).tolist()
    parts = zip(torch.split(values[order].cpu(), counts), torch.split(ids[order].cpu(), counts), strict=True)
    found = [(value[:k].tolist(), token[:k].tolist()) for value, token in parts]
    return [one for one, _ in found], [one for _, one in found]


def _argmax(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of the largest, as ``argmax`` has it, and its value; [S] each."""
    block = blocks.maxima.argmax(-1)
    largest = blocks.gather(torch.arange(len(block)), block)
    offset = largest.argmax(-1, keepdim=True)
    return block * BLOCK + offset[:, 0], largest.gather(1, offset)[:, 0]


def _in_blocks(values: torch.Tensor, fill: float) -> torch.Tensor:
    """[..., V] -> [..., N, B]."""
    missing = -values.shape[-1] % BLOCK
    padded = F.pad(values, (0, missing), value=fill) if missing else values
    return padded.reshape(*values.shape[:-1], -1, BLOCK)


def _weights(logits: torch.Tensor, best: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """The best logit becomes zero first: no temperature, however small, may turn two of them into infinities."""
    return logits.sub(best).div_(temperature.clamp_min(torch.finfo(logits.dtype).tiny)).exp_()


# ------------------------------------------------------------------ rows with a small top-k, together


def _sample_small_top_k(
    blocks: Blocks, best: torch.Tensor, params: SamplingRows, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of ``rows`` [R]: true and its token, or false if thousands of tokens are as good as its k-th."""
    params, best = params[rows], best[rows]
    done, ids, logits = _padded(len(rows), *_at_least(blocks, rows, _kth_value(blocks, rows, params.top_k)))
    weights = _weights(logits, best[:, None], params.temperature[:, None]).double()
    if bool((params.top_p < 1).any()):
        total = weights.cumsum(-1)[:, -1]  # one by one: the bits of ``sum`` depend on C, hence on the other rows
        weights *= _nucleus(weights, torch.where(params.top_p < 1, params.top_p * total, torch.inf))
    weights *= weights >= params.min_p[:, None]
    cumulative = weights.cumsum(-1)
    chosen = _first_above(cumulative, params.uniform[:, None] * cumulative[:, -1:])
    return done, ids.gather(1, chosen.clamp_max(ids.shape[1] - 1))[:, 0]


def _kth_value(blocks: Blocks, rows: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The k-th largest logit of each of ``rows``; k [R]."""
    most = int(k.max())
    found = blocks.maxima[rows].topk(min(most, blocks.maxima.shape[1])).indices
    values = blocks.gather(rows[:, None], found).flatten(1)
    return values.topk(most).values.gather(1, k[:, None] - 1)[:, 0]


def _at_least(
    blocks: Blocks, rows: torch.Tensor, threshold: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All tokens of ``rows`` [R] whose logit is finite and at least ``threshold`` [R].

    Three tensors, in the order of rows and then ids: which of ``rows``, id, logit.
    """
    threshold = threshold.clamp_min(torch.finfo(threshold.dtype).min)
    row, block = (blocks.maxima[rows] >= threshold[:, None]).nonzero(as_tuple=True)
    values = blocks.gather(rows[row], block)
    place, offset = (values >= threshold[row, None]).nonzero(as_tuple=True)
    return row[place], block[place] * BLOCK + offset, values[place, offset]


def _padded(
    num_rows: int, row: torch.Tensor, ids: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``_at_least`` gives, as rows: whether a row is here (not if it is too long) [R], ids and logits [R, C]."""
    counts = torch.bincount(row, minlength=num_rows)
    here = counts <= MAX_CANDIDATES
    column = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    shape, kept = (num_rows, max(1, int((counts * here).max()))), here[row]
    at = (row[kept], column[kept])
    padded_ids = torch.zeros(shape, dtype=torch.int64).index_put_(at, ids[kept])
    return here, padded_ids, torch.full(shape, -torch.inf).index_put_(at, logits[kept])


def _nucleus(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """weights [R, C], target [R] -> [R, C]: true for the heaviest, as few as weigh ``target`` together.

    Of equal weights those with the smaller ids come first.
    """
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    is_in = ordered.cumsum(-1) - ordered < target[:, None]  # what is heavier has not reached the target
    return torch.zeros_like(is_in).scatter(-1, order, is_in)


# ------------------------------------------------------------------ one row of any kind


def _sample_row(logits: torch.Tensor, best: torch.Tensor, params: SamplingRows, row: int) -> int:
    """logits [V] -> token."""
    top_k, top_p, min_p = int(params.top_k[row]), float(params.top_p[row]), params.min_p[row]
    weights = _weights(logits, best, params.temperature[row])
    if 0 < top_k < len(logits):
        weights.masked_fill_(logits < logits.topk(top_k, sorted=False).values.min(), 0.0)
    if top_p < 1:
        weights = _nucleus_of_row(weights, top_p)
    if min_p > 0:
        weights.masked_fill_(weights < min_p, 0.0)
    return _draw(weights, params.uniform[row])


def _nucleus_of_row(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """weights [V], none above 1 -> [V]: as ``_nucleus``, with zero for what is left out.

    A radix search for the weight at which the nucleus ends: the bits of floats that are not negative are in the order
    of the floats, and a histogram of masses over ten of them at a time says where the next ten matter.
    """
    ids, bits, mass = torch.arange(len(weights)), weights.view(torch.int32), weights.double()
    missing = top_p * mass.sum()
    for shift in (20, 10, 0):
        digits = bits >> shift
        masses = torch.bincount(digits, mass).flip(0)  # heaviest first
        reached = masses.cumsum(0)
        index = torch.searchsorted(reached, torch.minimum(missing, reached[-1]))
        missing = missing - (reached[index] - masses[index])
        inside = (digits == len(masses) - 1 - index).nonzero().flatten()
        ids, bits, mass = ids[inside], bits[inside] & ((1 << shift) - 1), mass[inside]
    # All that is left weighs the same, and stands in the order of ids.
    end, place = float(mass[0]), torch.arange(len(mass), dtype=torch.float64)
    kept = F.threshold(weights, end, 0.0)
    return kept.index_fill_(0, ids[place * end < missing], end)


def _draw(weights: torch.Tensor, uniform: torch.Tensor) -> int:
    """A token of [V] by its weight: first the block, then the token in it."""
    blocks = _in_blocks(weights, 0.0)
    sums = blocks.sum(-1, dtype=torch.float64)
    cumulative = sums.cumsum(0)
    target = uniform * cumulative[-1:]
    block = int(_first_above(cumulative, target))
    within = blocks[block].cumsum(0, dtype=torch.float64)
    # Rounding may put the rest just below 0, where the block's first token is found, whatever it weighs.
    rest = (target - (cumulative[block] - sums[block])).clamp_min(0.0)
    return block * BLOCK + int(_first_above(within, rest))


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """cumulative [..., C], target [..., 1] of at least 0 -> [..., 1]: the first index above it, whose weight is not
    zero."""
    last = cumulative[..., -1:]
    below = torch.nextafter(last, torch.zeros_like(last))  # rounding may have lifted a target to the last sum
    return torch.searchsorted(cumulative, torch.minimum(target, below), right=True)
