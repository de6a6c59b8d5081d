"""Rows with a grammar beside others: masks reach the draw, the matcher advances, and a row fails alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.serving.grammar.forms import choice_grammar, regex_grammar
from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.sampler import sample
from splitrank.serving.rank.sampling_state import SamplingState
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 512


class Rows:
    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_folder(write_tokenizer(folder, VOCAB_SIZE))
        self.eos = tuple(self.tokenizer.encode("<|im_end|>"))
        self.matchers = Matchers(folder, VOCAB_SIZE, self.eos)

    def state(self, grammar: str = "", **params: Any) -> SamplingState:
        given = SamplingParams(**{"temperature": 0.0, "max_tokens": 50, "grammar": grammar, **params})
        return SamplingState([1, 2], given, self.eos, self.matchers)

    def logits(self, *seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([2 * torch.randn(VOCAB_SIZE, generator=generator) for generator in generators])

    def answer(self, state: SamplingState) -> str:
        tokens: list[int] = []
        for step in range(50):
            (row,) = sample(self.logits(step), [state])
            assert row.failure is None
            if row.token in self.eos:
                break
            tokens.append(row.token)
        return self.tokenizer.decode(tokens)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.3, "seed": 5}, {"temperature": 1.0, "seed": 5, "top_k": 3}, {"frequency_penalty": 2.0}],
)
def test_an_answer_has_its_form_however_it_is_drawn(rows: Rows, params: dict[str, Any]) -> None:
    assert rows.answer(rows.state(choice_grammar(["abcd", "b1", "日本"]), **params)) in ("abcd", "b1", "日本")


def test_a_likely_token_outside_the_grammar_is_not_chosen(rows: Rows) -> None:
    (z,) = rows.tokenizer.encode("z")
    state = rows.state(regex_grammar("[ab]+"), logit_bias={z: 100.0}, logprobs=1)
    logits = rows.logits(1)
    logits[0, z] = 50
    (row,) = sample(logits.clone(), [state])
    assert rows.tokenizer.decode([row.token]).strip("ab") == ""
    assert row.logprobs is not None
    assert row.logprobs.top_ids == [z]  # of the model's own distribution


def test_other_rows_do_not_notice(rows: Rows) -> None:
    logits = rows.logits(1, 2, 3)
    alone = sample(logits.clone(), [rows.state() for _ in range(3)])
    beside = sample(logits, [rows.state(), rows.state(regex_grammar("[ab]+")), rows.state()])
    assert [alone[0], alone[2]] == [beside[0], beside[2]]


def test_a_row_whose_grammar_fails_fails_alone(rows: Rows) -> None:
    logits = rows.logits(1, 2, 3)
    states = [rows.state(), rows.state("start: nothing"), rows.state(regex_grammar("[ab]+"))]
    for _ in range(2):
        first, failed, last = sample(logits.clone(), states)
        assert failed.failure is not None
        assert failed.failure.code == "sampling_failed"
        assert "unknown name" in failed.failure.reason
        assert first.failure is last.failure is None
    assert [state.num_output for state in states] == [2, 0, 2]


def test_an_error_after_the_draw_fails_its_row_alone(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, other = rows.state(regex_grammar("[ab]+")), rows.state()

    def fail(token: int) -> None:
        raise ValueError("cannot advance")

    monkeypatch.setattr(broken._matcher, "advance", fail)
    failed, fine = sample(rows.logits(1, 2), [broken, other])
    assert failed.failure is not None
    assert "cannot advance" in failed.failure.reason
    assert failed.token == -1
    assert fine.failure is None


def test_numbers_that_are_none_still_fail_a_row(rows: Rows) -> None:
    logits = rows.logits(1)
    logits[0, 7] = float("nan")
    (row,) = sample(logits, [rows.state(regex_grammar("[ab]+"))])
    assert row.failure is not None
    assert row.failure.code == "invalid_numbers"


def test_an_answer_that_is_whole_ends_before_min_tokens(rows: Rows) -> None:
    """Until then, ``min_tokens`` bans the end wherever the grammar leaves a choice."""
    assert rows.answer(rows.state(choice_grammar(["ab"]), min_tokens=40)) == "ab"
    assert len(rows.answer(rows.state(regex_grammar("a{1,30}"), min_tokens=12, logit_bias={rows.eos[0]: 100.0}))) >= 12
