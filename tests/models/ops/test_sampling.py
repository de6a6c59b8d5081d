"""Batched sampling against the slow version: the same token for the same uniform, also at the real vocabulary."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from splitrank.models.ops import reference
from splitrank.models.ops.sampling import BLOCK, MAX_CANDIDATES, SamplingRows, _draw, sample, top_k, top_k_rows

REAL_VOCABULARY = 248_320
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 20, "top_p": 0.95},
    {"top_k": 256, "min_p": 0.01},
    {"top_k": 257},
    {"top_k": 5000, "top_p": 0.9},
    {"top_k": 10**9, "top_p": 0.8, "min_p": 0.02},
    {"top_p": 0.05},
    {"top_p": 0.95},
    {"top_p": 0.999999},
    {"top_p": 1e-300},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_p": 0.95, "min_p": 0.001},
    {"top_k": 40, "top_p": 0.99, "min_p": 0.05},
]
DEFAULTS: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def random(*shape: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of(rows: list[dict[str, Any]], uniform: torch.Tensor) -> SamplingRows:
    full = [{"temperature": 1.0} | DEFAULTS | row for row in rows]
    columns = {name: [row[name] for row in full] for name in ("temperature", "top_k", "top_p", "min_p")}
    return SamplingRows(
        torch.tensor(columns["temperature"], dtype=torch.float32),
        torch.tensor(columns["top_k"]),
        torch.tensor(columns["top_p"], dtype=torch.float64),
        torch.tensor(columns["min_p"], dtype=torch.float32),
        uniform,
    )


def expected(logits: torch.Tensor, rows: list[dict[str, Any]], uniform: torch.Tensor) -> list[int]:
    return [
        reference.sample_row(row, u, **({"temperature": 1.0} | params))
        for row, u, params in zip(logits, uniform.tolist(), rows, strict=True)
    ]


@pytest.mark.parametrize("vocab_size", [1, 5, 256, 389, 4096])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_every_kept_token_has_its_interval_of_the_uniform(filters: dict[str, Any], vocab_size: int) -> None:
    """The middle and both ends of each interval: the kept set and all weights are the slow version's."""
    logits = random(vocab_size, seed=vocab_size)
    weights = reference.sampling_weights(logits, 0.7, **filters).double()
    kept = weights.nonzero().flatten()
    ends = weights.cumsum(0)[kept] / weights.sum()
    widths = weights[kept] / weights.sum()
    chosen = (widths > 1e-9).nonzero().flatten()  # rounding of the sums is far below that
    chosen = chosen[:: 1 + len(chosen) // 200]
    for place in (0.01, 0.5, 0.99):
        uniform = (ends - place * widths)[chosen]
        rows = [{"temperature": 0.7} | filters] * len(uniform)
        tokens, _ = sample(logits.expand(len(uniform), -1).contiguous(), rows_of(rows, uniform))
        assert tokens.tolist() == kept[chosen].tolist()


def test_a_draw_on_the_border_of_two_blocks_is_no_token_of_zero_weight() -> None:
    """The sum of both blocks is rounded up, so that the draw lies below the second block by the sums' difference."""
    weights = torch.zeros(2 * BLOCK)
    weights[[3, 4]] = torch.tensor([1.0, 2.0**-51])
    weights[[BLOCK + 5, BLOCK + 6]] = torch.tensor([1.0, 2.0**-52])
    assert _draw(weights, torch.tensor(0.5, dtype=torch.float64)) == BLOCK + 5


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_tokens_at_the_real_vocabulary(filters: dict[str, Any], temperature: float) -> None:
    logits = random(4, REAL_VOCABULARY, seed=7)
    rows = [{"temperature": temperature} | filters] * 4
    uniform = torch.tensor([0.0, 0.3, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens, best = sample(logits, rows_of(rows, uniform))
    assert tokens.tolist() == expected(logits, rows, uniform)
    assert torch.equal(best, logits.amax(-1))


def test_rows_of_all_kinds_together_are_what_each_is_alone() -> None:
    rows = [{"temperature": t} | filters for t in (0.0, 0.6, 1.5) for filters in FILTERS]
    logits = random(len(rows), 3000, seed=1)
    uniform = torch.rand(len(rows), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens, _ = sample(logits, rows_of(rows, uniform))
    assert tokens.tolist() == expected(logits, rows, uniform)
    alone = [int(sample(logits[i : i + 1], rows_of(rows[i : i + 1], uniform[i : i + 1]))[0]) for i in range(len(rows))]
    assert tokens.tolist() == alone


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("kind", ["few levels", "all equal", "bfloat16", "mostly -inf"])
def test_ties_are_broken_as_the_slow_version_does(filters: dict[str, Any], kind: str) -> None:
    """Logits come from bfloat16, which has many equal ones."""
    logits = random(6, 20_000, seed=3)
    if kind == "few levels":
        logits = logits.round()
    elif kind == "all equal":
        logits = torch.zeros_like(logits)
    elif kind == "bfloat16":
        logits = logits.bfloat16().float()
    else:
        logits[:, 3:-2] = -torch.inf
    rows = [filters] * 6
    uniform = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.77, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = sample(logits, rows_of(rows, uniform))
    assert tokens.tolist() == expected(logits, rows, uniform)


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = random(5, 1000, seed=4).round()
    rows = [{"temperature": 0.0}] * 5
    tokens, _ = sample(logits, rows_of(rows, torch.zeros(5, dtype=torch.float64)))
    assert tokens.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits]


class SortSizes(TorchDispatchMode):
    """Elements of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.sort, torch.ops.aten.argsort):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.7, 2.0, 100.0])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_no_vocabulary_is_sorted(filters: dict[str, Any], temperature: float) -> None:
    """Not for the flattest distribution either."""
    row = rows_of([{"temperature": temperature} | filters], torch.tensor([0.5], dtype=torch.float64))
    with SortSizes() as sorts:
        sample(random(1, REAL_VOCABULARY, seed=6), row)
    assert max(sorts.sizes, default=0) <= MAX_CANDIDATES


def test_a_flat_row_beside_others_costs_them_no_memory() -> None:
    """Rows that are sampled together are padded to the longest: one with thousands of ties must not be among them."""
    logits = random(3, 50_000, seed=5)
    logits[1] = 0.0
    rows, uniform = [{"top_k": 20, "top_p": 0.95}] * 3, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    with SortSizes() as sorts:
        tokens, _ = sample(logits, rows_of(rows, uniform))
    assert tokens.tolist() == expected(logits, rows, uniform)
    assert max(sorts.sizes) <= 3 * 30


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_row_of_bad_numbers_shows_and_spares_its_neighbours(filters: dict[str, Any], bad: float) -> None:
    logits = random(3, 1000, seed=8)
    rows, uniform = [filters] * 3, torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    clean = expected(logits, rows, uniform)
    if bad == -torch.inf:
        logits[1] = bad
    else:
        logits[1, 777] = bad
    tokens, best = sample(logits, rows_of(rows, uniform))
    assert [int(tokens[0]), int(tokens[2])] == [clean[0], clean[2]]
    assert best.isfinite().tolist() == [True, False, True]


def test_single_infinities_below_are_no_bad_numbers() -> None:
    logits = random(1, 1000, seed=9)
    logits[0, ::2] = -torch.inf
    tokens, best = sample(logits, rows_of([{}], torch.tensor([0.5], dtype=torch.float64)))
    assert best.isfinite().all()
    assert int(tokens) % 2 == 1


@pytest.mark.parametrize("k", [1, 5, 20, 999, 1000, 5000])
def test_top_k_is_a_stable_sort(k: int) -> None:
    row = random(1000, seed=10).round()
    values, ids = top_k(row, k)
    ordered = row.sort(descending=True, stable=True)
    assert torch.equal(values, ordered.values[:k])
    assert torch.equal(ids, ordered.indices[:k])


@pytest.mark.parametrize("k", [1, 3, 20, 5000])
def test_top_k_of_rows_together_is_that_of_each(k: int) -> None:
    logits = random(5, 1000, seed=11).round()
    logits[1] = 0  # all the same
    logits[2, 2:] = -torch.inf
    values, ids = top_k_rows(logits, k)
    for row, found, tokens in zip(logits, values, ids, strict=True):
        expected = top_k(row, k)
        count = min(k, int(row.isfinite().sum()))
        assert found == expected[0].tolist()[:count]
        assert tokens == expected[1].tolist()[:count]
