"""Long prompts: same ids, no thread held up, and no work on what can never fit."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, RequestParser
from splitrank.serving.text.prompt_length import PIECE_CHARS, PromptLength, PromptTooLongError
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.front_fakes import make_info, make_tokenizer
from tests.support.tiny_tokenizer import write_tokenizer

DEMO = Path(__file__).parents[3] / "configs" / "demo"
WORDS = "The quick brown fox counts 12345 apples, then sells 67 of them.\n"


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return Tokenizer.from_folder(DEMO)


class CountingBackend:
    """Hands everything on, and counts the characters that are tokenized."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.num_chars = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.num_chars += sum(map(len, texts))
        return self._backend.encode_batch_fast(texts, **options)


# ------------------------------------------------------------------ the ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        WORDS * 300,
        "a" * 5000,
        " " * 3000 + "x",
        "<|im_start|>user\nhi<|im_end|>\n<think>\n</think>",
        "<|im_end|><|im_end|>  <|endoftext|>x",
        "naïve Grüße, 世界 🦊 क्षत्रिय e\u0301 \u1112\u1161\u11ab \r\n\t\u3000",
        "x\0y\x7f\ufeff\ufffd",
    ],
)
def test_ids_equal_those_of_transformers(demo: Tokenizer, text: str) -> None:
    expected = AutoTokenizer.from_pretrained(DEMO)(text)["input_ids"]
    assert demo.encode(text) == expected == demo.backend.encode(text).ids
    assert demo.encode(text, max_tokens=len(expected)) == expected
    assert demo.decode(expected) == demo.backend.decode(expected, skip_special_tokens=True)


def test_the_file_cannot_cut_or_pad_prompts(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 512)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).encode("1234567")) == 7


def test_a_lone_surrogate_is_a_value_error(demo: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate \\ud83d"):
        demo.encode("a\ud83d")


# ------------------------------------------------------------------ other threads


@pytest.mark.parametrize("work", ["encode", "decode"])
def test_other_threads_run_meanwhile(demo: Tokenizer, work: str) -> None:
    """With the interpreter's lock held, the other thread gets its turn once before and once after the call."""
    text = WORDS * 8000
    ids = demo.encode(text) if work == "decode" else []
    num_turns, stop = 0, threading.Event()

    def take_turns() -> None:
        nonlocal num_turns
        while not stop.is_set():
            num_turns += 1
            time.sleep(0)

    other = threading.Thread(target=take_turns)
    other.start()
    try:
        before = num_turns
        demo.encode(text) if work == "encode" else demo.decode(ids)
        during = num_turns - before
    finally:
        stop.set()
        other.join()
    assert during > 50


# ------------------------------------------------------------------ what can never fit


@pytest.mark.parametrize(
    "text", [WORDS * 20, "a" * 999, " " * 999, "7" * 999, "<|im_start|>" * 99, "\u1112\u1161\u11ab"]
)
def test_the_bound_is_below_the_truth(demo: Tokenizer, text: str) -> None:
    bound = PromptLength(demo.backend).at_least(text)
    assert 0 < bound <= len(demo.encode(text))


@pytest.mark.parametrize(
    "change",
    [
        lambda backend: setattr(backend, "normalizer", normalizers.Strip()),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda backend: backend.add_tokens([AddedToken("<x>", lstrip=True)]),
    ],
    ids=["strip", "whitespace", "lstrip"],
)
def test_nothing_is_said_of_a_tokenizer_that_drops_text(change: Any) -> None:
    backend = Backend.from_file(str(DEMO / "tokenizer.json"))
    assert PromptLength(backend).at_least(" " * 100_000) > 0
    change(backend)
    assert PromptLength(backend).at_least(" " * 100_000) == 0


def test_too_many_bytes_are_refused_before_tokenizing(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    parser = RequestParser(tokenizer, make_info(tokenizer, max_model_len=100))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was tokenized")

    tokenizer.backend = type("Backend", (), {"encode_batch_fast": never})()
    text = "x" * 10_000
    requests: dict[str, dict[str, Any]] = {
        COMPLETIONS_URL: {"prompt": text},
        CHAT_URL: {"messages": [{"role": "user", "content": text}]},
    }
    for url, body in requests.items():
        with pytest.raises(ApiError, match=r"context length is 100 tokens.*contains at least \d+ tokens") as caught:
            parser.parse(url, json.dumps(body).encode())
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        assert caught.value.param == next(iter(body))


@pytest.mark.parametrize("text", [WORDS, "\n", "a", "7", "🦊", "<|im_end|>"])
def test_a_text_that_is_far_too_long_costs_no_more_than_the_context(text: str) -> None:
    backend: Any = CountingBackend(Backend.from_file(str(DEMO / "tokenizer.json")))
    text *= 4 * 2**20 // len(text)
    length = PromptLength(backend)
    longest_token = 20
    with pytest.raises(PromptTooLongError) as caught:
        length.check(text, 8192)
    assert caught.value.num_tokens > 8192
    assert backend.num_chars <= 2 * 8192 * longest_token + PIECE_CHARS


def test_a_text_that_just_fits_is_taken(demo: Tokenizer) -> None:
    for text in (WORDS * 4000, " " * 100_000, "a" * 30_000):
        ids = demo.encode(text)
        assert demo.encode(text, max_tokens=len(ids)) == ids


def test_too_many_ids_are_refused_before_each_is_looked_at(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    parser = RequestParser(tokenizer, make_info(tokenizer, max_model_len=100))
    with pytest.raises(ApiError, match="your prompt contains 200 tokens"):
        parser.parse(COMPLETIONS_URL, json.dumps({"prompt": [1] * 199 + [-1]}).encode())
