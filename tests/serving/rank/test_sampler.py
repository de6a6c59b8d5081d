"""The sampler by exact probabilities and sets, against transformers' processors, and by what a seed promises."""

from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from splitrank.models.ops import reference, sampling
from splitrank.models.ops.sampling import SamplingRows
from splitrank.serving.protocol.messages import RowFailure
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.sampler import SampledRow, sample
from splitrank.serving.rank.sampling_state import SamplingState

VOCAB_SIZE, EOS = 50, (3, 7)


def logits_of(*seeds: int) -> torch.Tensor:
    """[len(seeds), vocab], no two values of a row equal."""
    return torch.stack([2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def state_of(prompt: list[int] | None = None, **params: Any) -> SamplingState:
    params = {"temperature": 0.0, "max_tokens": 100, **params}
    return SamplingState(prompt or [1, 2], SamplingParams(**params), EOS)


def drawn(logits: torch.Tensor, *states: SamplingState) -> list[int]:
    rows = sample(logits, list(states))
    assert [row.failure for row in rows] == [None] * len(states)
    return [row.token for row in rows]


def middle_draws(logits: torch.Tensor, probabilities: torch.Tensor, **filters: Any) -> list[int]:
    """What is drawn from [vocab] in the middle of the interval that each token of ``probabilities`` has."""
    likely = probabilities > 1e-7  # narrower intervals are within the rounding of float32 probabilities
    uniform = (probabilities.cumsum(0) - probabilities / 2)[likely]
    params = SamplingParams(**filters)
    rows = SamplingRows(
        torch.full((len(uniform),), params.temperature),
        torch.full((len(uniform),), params.top_k),
        torch.full((len(uniform),), params.top_p, dtype=torch.float64),
        torch.full((len(uniform),), params.min_p),
        uniform,
    )
    return sampling.sample(logits.expand(len(uniform), -1).contiguous(), rows)[0].tolist()


# ------------------------------------------------------------------ which tokens, with which probability


def test_greedy_takes_the_best() -> None:
    logits = logits_of(1, 2, 3)
    assert drawn(logits, *(state_of() for _ in range(3))) == logits.argmax(-1).tolist()


def test_greedy_beside_a_sampled_neighbour_takes_the_best() -> None:
    logits = logits_of(1, 2)
    assert drawn(logits, state_of(), state_of(temperature=1.0, seed=1))[0] == int(logits[0].argmax())


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        ({}, []),
        ({"top_k": 1}, [TopKLogitsWarper(1)]),
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_k": 500}, []),
        ({"top_p": 0.5}, [TopPLogitsWarper(0.5)]),
        ({"top_p": 0.05}, [TopPLogitsWarper(0.05)]),
        ({"top_p": 0.999}, [TopPLogitsWarper(0.999)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"min_p": 1.0}, [MinPLogitsWarper(1.0)]),
        (
            {"top_k": 20, "top_p": 0.8, "min_p": 0.02},
            [TopKLogitsWarper(20), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)],
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_filters_keep_what_transformers_keeps(params: dict[str, Any], warpers: list[Any], seed: int) -> None:
    scores = logits_of(seed)
    found, logits = reference.sampling_weights(scores[0], 1.0, **params), scores[0]
    for warper in warpers:
        scores = warper(None, scores)
    expected = torch.softmax(scores[0], dim=-1)
    assert (found > 0).tolist() == (expected > 0).tolist()
    torch.testing.assert_close(found / found.sum(), expected, atol=1e-6, rtol=1e-5)
    assert middle_draws(logits, expected.double(), **params) == (expected > 1e-7).nonzero().flatten().tolist()


def test_sets_by_hand() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1."""
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()

    def kept(**params: Any) -> list[int]:
        weights = reference.sampling_weights(logits, 1.0, **params).double()
        found = weights.nonzero().flatten().tolist()
        assert middle_draws(logits, weights / weights.sum(), **params) == found
        return found

    assert kept(top_k=2) == [0, 2]
    assert kept(top_p=0.39) == [0]
    assert kept(top_p=0.41) == [0, 2]
    assert kept(top_p=0.71) == [0, 2, 3]
    assert kept(min_p=0.45) == [0, 2, 3]
    assert kept(min_p=0.55) == [0, 2]
    assert kept(top_p=1e-300) == [0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_exact_probabilities(temperature: float) -> None:
    """Chi-square over 4,000 draws with fixed seeds: of 49 degrees of freedom, 100 is beyond p = 2e-5."""
    logits, num_draws = logits_of(4), 4000
    scores = TemperatureLogitsWarper(temperature)(None, logits)[0]
    expected = torch.softmax(scores, dim=-1) * num_draws
    states = [state_of(temperature=temperature, seed=seed) for seed in range(num_draws)]
    counts = torch.bincount(torch.tensor(drawn(logits.expand(num_draws, -1), *states)), minlength=VOCAB_SIZE)
    rare = expected < 5
    pairs = [(counts[~rare], expected[~rare]), (counts[rare].sum(), expected[rare].sum().clamp_min(1e-9))]
    assert sum(float(((found - wanted) ** 2 / wanted).sum()) for found, wanted in pairs) < 100


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy_and_not_an_infinity(temperature: float) -> None:
    logits = logits_of(1)
    assert drawn(logits, state_of(temperature=temperature, seed=1)) == logits.argmax(-1).tolist()


# ------------------------------------------------------------------ penalties, bias, bans


def adjusted(logits: torch.Tensor, output: list[int], prompt: list[int], **params: Any) -> torch.Tensor:
    state, changed = state_of(prompt, **params), logits.clone()
    for token in output:
        state.append(token)
    state.adjust_(changed)
    return changed


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    logits, prompt, output = logits_of(3), [4, 9, 9, 11], [20, 4, 20]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits.clone())
    assert torch.equal(adjusted(logits[0], output, prompt, repetition_penalty=penalty), expected[0])


def test_presence_and_frequency_are_over_the_output_alone() -> None:
    logits, prompt, output = logits_of(3)[0], [4, 9, 9, 11], [20, 4, 20, 20]
    found = adjusted(logits, output, prompt, presence_penalty=0.5, frequency_penalty=-0.25)
    expected = logits.clone()
    expected[20] -= 0.5 - 0.25 * 3
    expected[4] -= 0.5 - 0.25
    torch.testing.assert_close(found, expected)


def test_logit_bias_is_added() -> None:
    logits = logits_of(3)[0]
    found = adjusted(logits, [], [1], logit_bias={5: 2.5, 49: -100.0})
    expected = logits.clone()
    expected[5] += 2.5
    expected[49] -= 100.0
    assert torch.equal(found, expected)


def test_penalties_change_the_choice_of_greedy() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 10], logits[0, 11] = 3.0, 2.5
    state = state_of(frequency_penalty=0.4)
    assert [drawn(logits, state)[0] for _ in range(5)] == [10, 10, 11, 10, 11]


@pytest.mark.parametrize(("ignore_eos", "banned"), [(False, {3, 7, 12}), (True, {12})])
def test_min_tokens_bans_what_would_end_the_request_too_early(ignore_eos: bool, banned: set[int]) -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, list(EOS)], logits[0, 12], logits[0, 20] = 5.0, 9.0, 1.0
    state = state_of(min_tokens=2, stop_token_ids=(12,), ignore_eos=ignore_eos)
    early = [drawn(logits, state)[0] for _ in range(2)]
    assert not banned & set(early)
    assert drawn(logits, state) == [12]


def test_stop_tokens_stay_banned_under_any_bias_and_penalty() -> None:
    logits = logits_of(1)
    state = state_of(min_tokens=3, logit_bias={3: 100.0, 7: 100.0}, presence_penalty=-2.0, repetition_penalty=0.1)
    assert not {drawn(logits, state)[0] for _ in range(3)} & set(EOS)


# ------------------------------------------------------------------ seeds


def run(num_steps: int, state: SamplingState, neighbours: list[SamplingState], position: int) -> list[int]:
    """Tokens of ``state`` over steps, as row ``position`` among neighbours; its logits depend on its output."""
    tokens: list[int] = []
    for step in range(num_steps):
        rows = [*(logits_of(1000 + 7 * step + i)[0] for i in range(len(neighbours)))]
        rows.insert(position, logits_of(step * 50 + (tokens[-1] if tokens else 0))[0])
        states = [*neighbours]
        states.insert(position, state)
        tokens.append(drawn(torch.stack(rows), *states)[position])
    return tokens


def test_a_seed_gives_the_same_draws_whatever_stands_beside_it() -> None:
    params: dict[str, Any] = {"temperature": 1.0, "seed": 42, "top_p": 0.9, "presence_penalty": 0.3}
    alone = run(20, state_of(**params), [], 0)
    for number, position in ((1, 0), (3, 2), (3, 3)):
        neighbours = [state_of(temperature=1.5, seed=i, top_k=5 * i) for i in range(number)]
        assert run(20, state_of(**params), neighbours, position) == alone
    assert run(20, state_of(**{**params, "seed": 43}), [], 0) != alone


def test_every_token_is_a_draw_of_its_own() -> None:
    logits, state = torch.zeros(1, VOCAB_SIZE), state_of(temperature=1.0, seed=1)
    assert len({drawn(logits, state)[0] for _ in range(20)}) > 10  # of 50 equally likely ones


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1, 0])
def test_the_widest_seeds_are_taken(seed: int) -> None:
    logits = logits_of(1)
    assert drawn(logits, state_of(temperature=1.0, seed=seed)) == drawn(logits, state_of(temperature=1.0, seed=seed))


# ------------------------------------------------------------------ logprobs


@pytest.mark.parametrize("temperature", [0.0, 1.7])
@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs_are_of_the_model_s_own_distribution(num_top: int, temperature: float) -> None:
    logits = logits_of(6, 7)
    wanted = state_of(temperature=temperature, seed=1, logprobs=num_top, top_k=3, presence_penalty=1.0)
    first, second = sample(logits, [wanted, state_of()])
    expected = torch.log_softmax(logits[0].double(), dim=-1)
    assert first.logprobs is not None
    assert second.logprobs is None
    assert first.logprobs.logprob == pytest.approx(float(expected[first.token]), abs=1e-5)
    best = expected.sort(descending=True)
    assert first.logprobs.top_ids == best.indices[:num_top].tolist()
    assert first.logprobs.top_logprobs == pytest.approx(best.values[:num_top].tolist(), abs=1e-5)


def test_logits_are_left_as_they_are() -> None:
    logits = logits_of(1, 2)
    before = logits.clone()
    drawn(logits, state_of(repetition_penalty=2.0, logit_bias={1: 5.0}), state_of(temperature=1.0, seed=1, top_k=3))
    assert torch.equal(logits, before)


def test_every_state_advances_by_its_token() -> None:
    states = [state_of(), state_of(temperature=1.0, seed=3)]
    drawn(logits_of(1, 2), *states)
    assert [state.num_output for state in states] == [1, 1]


# ------------------------------------------------------------------ a row fails alone

KINDS: list[dict[str, Any]] = [
    {},
    {"logprobs": 3},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 0.6, "seed": 1, "top_k": 20, "top_p": 0.95},
    {"temperature": 1.0, "seed": 1, "top_p": 0.9, "repetition_penalty": 1.3, "logit_bias": {4: 2.0}},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("value", "reason"), [(torch.nan, "hold NaN"), (torch.inf, "hold infinity"), (-torch.inf, "are all minus infinity")]
)
def test_bad_numbers_end_their_row_alone(
    kind: dict[str, Any], value: float, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    clean = logits_of(*range(len(KINDS)))
    expected = sample(clean, [state_of(**other) for other in KINDS])
    bad = torch.cat((clean, logits_of(99)))
    bad[-1, slice(None) if value == -torch.inf else 17] = value
    states = [state_of(**other) for other in [*KINDS, kind]]
    *others, failed = sample(bad, states)
    assert others == expected
    assert failed.failure == RowFailure("invalid_numbers", f"the model's logits for output token 0 {reason}")
    assert [state.num_output for state in states] == [1] * len(KINDS) + [0]
    assert [record.getMessage() for record in caplog.records] == [f"a request fails: {failed.failure.reason}"]


def test_some_logits_of_minus_infinity_are_no_error() -> None:
    logits = logits_of(*range(len(KINDS)))
    logits[:, ::2] = -torch.inf
    rows = sample(logits, [state_of(**{**kind, "logit_bias": {0: 1.0}}) for kind in KINDS])
    assert [(row.failure, row.token % 2) for row in rows] == [(None, 1)] * len(KINDS)


@pytest.mark.parametrize(
    "bad",
    [
        {"logit_bias": {VOCAB_SIZE: 1.0}},
        {"min_tokens": 1, "stop_token_ids": (10**9,)},
        {"temperature": 1.0},  # no seed: a fault of the front
    ],
    ids=str,
)
def test_an_error_of_our_own_ends_its_row_alone(bad: dict[str, Any]) -> None:
    logits = logits_of(*range(len(KINDS) + 1))
    expected = sample(logits[1:], [state_of(**kind) for kind in KINDS])
    states = [state_of(**kind) for kind in [bad, *KINDS]]
    failed, *others = sample(logits, states)
    assert others == expected
    assert failed.failure is not None
    assert failed.failure.code == "sampling_failed"
    assert failed.failure.reason.startswith("sampling failed: ")
    assert "\n" not in failed.failure.reason
    assert [state.num_output for state in states] == [0] + [1] * len(KINDS)


# ------------------------------------------------------------------ the real vocabulary

REAL_VOCABULARY = 248_320


def test_a_row_of_the_real_vocabulary_is_the_same_alone_and_among_others() -> None:
    """Whole passes over a row must not be cut between threads in a way that depends on the neighbours."""
    logits = 3 * torch.randn(len(KINDS), REAL_VOCABULARY, generator=torch.Generator().manual_seed(1))
    together = sample(logits, [state_of(**kind) for kind in KINDS])
    alone = [sample(row[None], [state_of(**kind)])[0] for row, kind in zip(logits, KINDS, strict=True)]
    assert together == alone
    assert all(isinstance(row, SampledRow) and row.failure is None for row in alone)


def test_penalties_over_a_long_prompt_and_a_long_output() -> None:
    logits = 3 * torch.randn(1, REAL_VOCABULARY, generator=torch.Generator().manual_seed(2))
    prompt, output = list(range(0, REAL_VOCABULARY, 3)), [7, 9, *range(100, 180), 7, 7]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + output]), logits.clone())[0]
    counts = torch.bincount(torch.tensor(output), minlength=REAL_VOCABULARY)
    expected -= 0.25 * (counts > 0) + 0.5 * counts
    params = {"repetition_penalty": 1.3, "presence_penalty": 0.25, "frequency_penalty": 0.5}
    torch.testing.assert_close(adjusted(logits[0], output, prompt, **params), expected)


@pytest.mark.parametrize("top_k", [2**40, 2**63 - 1])
def test_a_top_k_beyond_all_numbers_keeps_all(top_k: int) -> None:
    logits = logits_of(1)
    expected = drawn(logits, state_of(temperature=1.0, seed=4))
    assert drawn(logits, state_of(temperature=1.0, seed=4, top_k=top_k)) == expected
