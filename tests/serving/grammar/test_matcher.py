"""Masks over a small vocabulary: whatever is chosen within them has the form, and nothing else may be chosen."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.grammar.forms import (
    ANY_OBJECT,
    after_thinking,
    choice_grammar,
    json_grammar,
    regex_grammar,
    written_grammar,
)
from splitrank.serving.grammar.library import GrammarError
from splitrank.serving.grammar.matcher import Matchers, TokenMatcher
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 950  # of which 937 have an entry
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "kind": {"enum": ["é", 'a"b']},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}


class Small:
    """A small vocabulary, and walks through its masks."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_folder(write_tokenizer(folder, VOCAB_SIZE))
        self.eos = (*self.tokenizer.encode("<|im_end|>"), *self.tokenizer.encode("<|endoftext|>"))
        self.matchers = Matchers(folder, VOCAB_SIZE, self.eos)

    def allowed(self, matcher: TokenMatcher) -> list[int]:
        mask = matcher.allowed(VOCAB_SIZE)
        assert mask.shape == (VOCAB_SIZE,)
        return [int(token) for token in mask.nonzero()[0]]

    def walk(self, grammar: str, seed: int, limit: int = 400) -> str | None:
        """The text of random allowed tokens up to a stop token; None if it has not come to an end."""
        matcher, draw, tokens = self.matchers.matcher(grammar), random.Random(seed), []
        for _ in range(limit):
            token = draw.choice(self.allowed(matcher))
            matcher.advance(token)
            if token in self.eos:
                return b"".join(map(self.tokenizer.token_bytes, tokens)).decode()
            tokens.append(token)
        return None

    def behind(self, grammar: str, text: str) -> list[int]:
        """What may follow ``text``."""
        matcher = self.matchers.matcher(grammar)
        for token in self.tokenizer.encode(text):
            assert token in self.allowed(matcher), (text, token)
            matcher.advance(token)
        return self.allowed(matcher)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("tokenizer"))


def is_of_schema(text: str) -> bool:
    value: Any = json.loads(text)
    ages = value["ages"]
    assert list(value) == ["name", "ages", "kind"]
    assert all(type(age) is int and 0 <= age <= 99 for age in ages)
    return len(value["name"]) <= 6 and len(ages) <= 3 and value["kind"] in ("é", 'a"b')


FORMS: list[tuple[Callable[[], str], Callable[[str], object]]] = [
    (lambda: json_grammar(SCHEMA), is_of_schema),
    (lambda: json_grammar(json.dumps(SCHEMA), whitespace=""), lambda text: is_of_schema(text) and "\n" not in text),
    (lambda: regex_grammar("^(ab|[0-9]{2,4})x?$"), re.compile(r"(ab|[0-9]{2,4})x?").fullmatch),
    (lambda: choice_grammar(["abc", "abd", 'q"\n', "日本"]), ["abc", "abd", 'q"\n', "日本"].__contains__),
    (lambda: written_grammar('root ::= "a" | "b" x\nx ::= [0-9] [0-9]?'), re.compile("a|b[0-9]{1,2}").fullmatch),
    (lambda: written_grammar('start: "a" | "b" X\nX: /[0-9]{1,2}/'), re.compile("a|b[0-9]{1,2}").fullmatch),
]


@pytest.mark.parametrize(("make", "has_form"), FORMS, ids=["schema", "tight", "regex", "choice", "gbnf", "lark"])
def test_whatever_the_masks_allow_has_the_form(
    small: Small, make: Callable[[], str], has_form: Callable[[str], object]
) -> None:
    texts = [small.walk(make(), seed) for seed in range(12)]
    assert all(text is not None and has_form(text) for text in texts), texts
    assert len(set(texts)) > 1


def test_a_mask_is_the_tokens_that_go_on_with_a_choice(small: Small) -> None:
    choices = ["ab1", "ac2", "b3"]
    entries = [small.tokenizer.token_bytes(token).decode(errors="replace") for token in range(VOCAB_SIZE)]
    for begun in ("", "a"):
        expected = {
            token
            for token, entry in enumerate(entries)
            if entry and any(choice.startswith(begun + entry) for choice in choices)
        }
        assert {*small.behind(choice_grammar(choices), begun)} == expected


def test_only_the_end_may_follow_a_whole_answer(small: Small) -> None:
    grammar = choice_grammar(["yes", "no"])
    assert sorted(small.eos) == small.behind(grammar, "yes")
    assert not {*small.eos} & {*small.behind(grammar, "")}
    assert {*small.eos} < {*small.behind(regex_grammar("a+"), "a")}


def test_a_step_behind_the_end_is_no_error(small: Small) -> None:
    matcher = small.matchers.matcher(choice_grammar(["a"]))
    for token in (*small.tokenizer.encode("a"), *small.eos, *small.eos):
        matcher.advance(token)
    assert small.allowed(matcher) == sorted(small.eos)


def test_the_grammar_begins_behind_the_thoughts(small: Small) -> None:
    grammar = after_thinking(json_grammar(ANY_OBJECT))
    thinking = small.behind(grammar, "{ so I think </thin")
    entries = {token: small.tokenizer.token_bytes(token) for token in range(VOCAB_SIZE)}
    texts = {token for token, entry in entries.items() if entry.isascii() and not small.tokenizer.is_special(token)}
    assert {token for token in texts if entries[token]} <= {*thinking}
    assert not {*small.eos} & {*thinking}
    (mark,) = small.tokenizer.encode("</think>")
    assert mark in thinking
    spelled = [token for letter in "</think>" for token in small.tokenizer.encode(letter)]
    for end in ([mark], spelled):
        matcher = small.matchers.matcher(grammar)
        for token in (*small.tokenizer.encode("so "), *end, *small.tokenizer.encode("\n\n")):
            assert token in small.allowed(matcher)
            matcher.advance(token)
        assert small.allowed(matcher) == small.behind(json_grammar(ANY_OBJECT), "")
    assert {*small.eos} <= {*small.behind(grammar, "so </think>\n\n{}")}


def test_white_space_in_json_is_bounded(small: Small) -> None:
    (space,) = small.tokenizer.encode(" ")
    assert space in small.behind(json_grammar(ANY_OBJECT), "{")
    assert space not in small.behind(json_grammar(ANY_OBJECT), "{ ")


def test_matchers_of_one_grammar_are_independent(small: Small) -> None:
    grammar = choice_grammar(["ab", "ba"])
    first, second = small.matchers.matcher(grammar), small.matchers.matcher(grammar)
    before = small.allowed(second)
    first.advance(small.tokenizer.encode("b")[0])
    assert small.allowed(second) == before != small.allowed(first)


def test_a_token_that_is_not_allowed_is_an_error_for_good(small: Small) -> None:
    matcher = small.matchers.matcher(choice_grammar(["ab"]))
    for _ in range(2):
        with pytest.raises(GrammarError, match="cannot be followed"):
            matcher.advance(small.tokenizer.encode("x")[0])
    with pytest.raises(GrammarError, match="cannot be followed"):
        matcher.allowed(VOCAB_SIZE)


def test_a_grammar_that_is_none_is_an_error(small: Small) -> None:
    with pytest.raises(GrammarError, match="unknown name"):
        small.matchers.matcher("start: nothing")


def test_a_checkpoint_without_stop_tokens(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match="no stop token"):
        Matchers(write_tokenizer(tmp_path, VOCAB_SIZE), VOCAB_SIZE, ()).matcher('start: "a"')
