"""Grammars in a whole rank: their vocabulary is read with the weights, and their state survives a preemption."""

import re
from pathlib import Path

import pytest
import torch

from splitrank.serving.grammar import matcher
from splitrank.serving.grammar.forms import json_grammar, regex_grammar
from splitrank.serving.rank.worker import Worker
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.scheduler_loop import Loop
from tests.support.stage_runner import launch_spec, random_tokens
from tests.support.tiny_tokenizer import write_tokenizer

PROMPTS = [random_tokens(30, 250, seed=seed) for seed in (1, 2)]
FORM = "([ab]{3}-){20}end"
GRAMMARS = [
    regex_grammar(FORM),
    json_grammar({"type": "array", "items": {"type": "integer"}, "minItems": 30, "maxItems": 30}),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    config = random_text_config(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    folder = write_checkpoint(make_reference(config, seed=5), tmp_path_factory.mktemp("grammar"), dtype="float32")
    write_tokenizer(folder, config.vocab_size)
    torch.set_num_threads(1)
    return folder, Tokenizer.from_folder(folder)


def load(folder: Path, run_dir: Path, num_pages: int, tokenizer: Tokenizer) -> Worker:
    run_dir.mkdir()
    eos = tuple(tokenizer.encode("<|im_end|>"))
    worker = Worker(launch_spec(folder, run_dir, num_pages=num_pages, eos_token_ids=eos), 0)
    worker.load()
    return worker


def answers(worker: Worker, *numbers: int) -> tuple[list[list[int]], int]:
    """Tokens of the requests, and how often one of them was preempted."""
    loop = Loop(worker.spec, executor=worker)
    for number in numbers:
        loop.add(str(number), PROMPTS[number], max_tokens=120, temperature=1.0, seed=3, grammar=GRAMMARS[number])
    loop.run()
    return [loop.tokens[str(number)] for number in numbers], loop.scheduler.stats().preemptions


def test_a_preempted_answer_goes_on_within_its_grammar(tokenizer: tuple[Path, Tokenizer], tmp_path: Path) -> None:
    """As if nothing had happened, while another row follows a grammar of its own."""
    folder, words = tokenizer
    worker = load(folder, tmp_path / "much", 96, words)
    expected = [tokens for number in (0, 1) for tokens in answers(worker, number)[0]]
    worker.close()
    worker = load(folder, tmp_path / "little", 10, words)  # of 16 tokens: not enough for both
    found, preemptions = answers(worker, 0, 1)
    worker.close()
    assert preemptions > 0
    assert found == expected
    assert re.fullmatch(FORM, words.decode(found[0]))
    assert words.decode(found[1]).startswith("[")


def test_no_step_reads_the_vocabulary(
    tokenizer: tuple[Path, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words = tokenizer
    worker = load(folder, tmp_path / "run", 96, words)

    def read(*source: object) -> None:
        raise AssertionError("the vocabulary is read in a step")

    monkeypatch.setattr(matcher, "read_vocabulary", read)
    (tokens,), _ = answers(worker, 0)
    worker.close()
    assert re.fullmatch(FORM, words.decode(tokens))


def test_a_vocabulary_that_cannot_be_read_fails_the_rows_that_need_it(
    tokenizer: tuple[Path, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*source: object) -> None:
        raise OSError("no such file: tokenizer.json")

    folder, words = tokenizer
    monkeypatch.setattr(matcher, "read_vocabulary", fail)
    worker = load(folder, tmp_path / "run", 96, words)
    loop = Loop(worker.spec, executor=worker)
    loop.add("held", PROMPTS[0], max_tokens=3, temperature=0.0, grammar=GRAMMARS[0])
    loop.add("free", PROMPTS[0], max_tokens=3, temperature=0.0)
    loop.run()
    worker.close()
    assert (loop.ended["held"].error_code, loop.ended["free"].finish_reason) == ("sampling_failed", "length")
    assert "no such file" in (loop.ended["held"].error or "")
