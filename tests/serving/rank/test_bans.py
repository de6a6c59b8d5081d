"""Tokens and words that an answer must not have, and the only ones that it may have."""

from typing import Any

import torch

from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.sampler import sample
from splitrank.serving.rank.sampling_state import SamplingState

EOS = (3, 7)


def state_of(**params: Any) -> SamplingState:
    return SamplingState([4, 5], SamplingParams(**{"temperature": 0.0, "max_tokens": 100, **params}), EOS)


def answer(state: SamplingState, *likeliest: list[int]) -> list[int]:
    """Greedy tokens of rows in which these are the likeliest, in this order."""
    tokens = []
    for ids in likeliest:
        logits = torch.linspace(0, 1, 50)
        logits[ids] = torch.arange(len(ids), 0, -1) + 10.0
        (row,) = sample(logits[None], [state])
        assert row.failure is None
        tokens.append(row.token)
    return tokens


def test_a_bad_word_of_one_token_is_never_said() -> None:
    assert answer(state_of(bad_words_token_ids=((8,), (9,))), [8, 9, 6], [9, 5]) == [6, 5]


def test_only_the_end_of_a_longer_bad_word_is_banned_and_only_behind_its_beginning() -> None:
    state = state_of(bad_words_token_ids=((1, 2, 8), (2, 9)))
    assert answer(state, [8, 6], [1], [2], [8, 9, 6], [9], [2], [8], [2], [9, 6]) == [8, 1, 2, 6, 9, 2, 8, 2, 6]


def test_the_prompt_does_not_begin_a_bad_word() -> None:
    assert answer(state_of(bad_words_token_ids=((5, 8),)), [8, 6]) == [8]


def test_only_allowed_tokens_are_chosen() -> None:
    assert answer(state_of(allowed_token_ids=(11, 12)), [8, 12, 11], [8]) == [12, 12]
    drawn = state_of(allowed_token_ids=(11, 12), temperature=2.0, seed=3)
    assert {*answer(drawn, *[[8]] * 40)} == {11, 12}


def test_an_allowed_token_is_chosen_though_all_of_them_are_banned() -> None:
    assert answer(state_of(allowed_token_ids=EOS, min_tokens=5), [8], [8])[0] in EOS


def test_logprobs_are_of_the_models_own_distribution() -> None:
    state = state_of(bad_words_token_ids=((8,),), allowed_token_ids=(8, 9), logprobs=1)
    logits = torch.zeros(1, 50)
    logits[0, 8] = 5
    (row,) = sample(logits, [state])
    assert row.token == 9
    assert row.logprobs is not None
    assert row.logprobs.top_ids == [8]
