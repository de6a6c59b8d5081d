"""The forms of an answer that a request may ask for, as the engine gets them, and what is refused."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.grammar.forms import ANY_OBJECT, after_thinking, choice_grammar, json_grammar, regex_grammar
from splitrank.serving.grammar.library import GrammarError
from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, RequestParser
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.front_fakes import make_info, make_tokenizer
from tests.support.limits import ANSWER_S, scaled

PROMPTS: dict[str, dict[str, Any]] = {
    CHAT_URL: {"messages": [{"role": "user", "content": "hi"}], "enable_thinking": False},
    COMPLETIONS_URL: {"prompt": "hi"},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
UNIQUE = {"type": "array", "uniqueItems": True}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def grammar_of(tokenizer: Tokenizer, url: str = CHAT_URL, **fields: Any) -> str:
    parser = RequestParser(tokenizer, make_info(tokenizer))
    request = parser.parse(url, json.dumps(PROMPTS[url] | fields).encode())
    assert request.kind in ("chat", "completion")
    return request.generations[0].params.grammar


def refused(tokenizer: Tokenizer, url: str = CHAT_URL, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        grammar_of(tokenizer, url, **fields)
    assert caught.value.status == 400
    return caught.value


def format_of(schema: Any = SCHEMA, **others: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **others}}


ASKED: list[tuple[dict[str, Any], Any]] = [
    ({"response_format": {"type": "json_object"}}, lambda: json_grammar(ANY_OBJECT)),
    ({"response_format": format_of(strict=True)}, lambda: json_grammar(SCHEMA)),
    ({"response_format": format_of()}, lambda: json_grammar(SCHEMA, is_strict=False)),
    ({"guided_json": SCHEMA}, lambda: json_grammar(SCHEMA)),
    ({"guided_json": json.dumps(SCHEMA)}, lambda: json_grammar(SCHEMA)),
    ({"guided_regex": "a+"}, lambda: regex_grammar("a+")),
    ({"guided_choice": ["yes", "no"]}, lambda: choice_grammar(["yes", "no"])),
    ({"guided_grammar": 'start: "a"'}, lambda: 'start: "a"'),
    ({"structured_outputs": {"json": SCHEMA}}, lambda: json_grammar(SCHEMA)),
    ({"structured_outputs": {"json_object": True}}, lambda: json_grammar(ANY_OBJECT)),
    ({"structured_outputs": {"regex": "a+"}}, lambda: regex_grammar("a+")),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda: choice_grammar(["yes", "no"])),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, lambda: 'start: "a"'),
    (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        lambda: json_grammar(SCHEMA, whitespace=""),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), ASKED, ids=[str(fields) for fields, _ in ASKED])
def test_every_form_becomes_a_grammar(tokenizer: Tokenizer, fields: dict[str, Any], expected: Any) -> None:
    for url in PROMPTS:
        assert grammar_of(tokenizer, url, **fields) == expected()


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"guided_json": None}], ids=str)
def test_any_text_is_the_default(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    for url in PROMPTS:
        assert grammar_of(tokenizer, url, **fields) == ""


def test_behind_thoughts(tokenizer: Tokenizer) -> None:
    """However the answer shows them."""
    for fields in ({}, {"separate_reasoning": False}):
        asked = {"enable_thinking": True, "guided_regex": "a+", **fields}
        assert grammar_of(tokenizer, **asked) == after_thinking(regex_grammar("a+"))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "structural_tag"}}, "response_format.type", "structural_tag"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs"),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "x"}}}, "response_format.json_schema", "not"),
    ({"response_format": format_of({"type": "objct"})}, "response_format", "objct"),
    ({"response_format": format_of(UNIQUE, strict=True)}, "response_format", "uniqueItems"),
    ({"response_format": format_of({"$ref": "http://x/y"})}, "response_format", "http://x/y"),
    ({"guided_json": "{"}, "guided_json", "guided_json"),
    ({"guided_json": UNIQUE}, "guided_json", "uniqueItems"),
    ({"guided_regex": "["}, "guided_regex", "unclosed"),
    ({"guided_regex": "(?=a)b"}, "guided_regex", "look-ahead"),
    ({"guided_choice": []}, "guided_choice", "length"),
    ({"guided_grammar": "start: other"}, "guided_grammar", "unknown name"),
    ({"guided_grammar": '{"grammars": []}'}, "guided_grammar", "Lark or GBNF"),
    ({"guided_grammar": "?start: x"}, "guided_grammar", "GBNF"),
    ({"guided_grammar": "start: <|im_end|>"}, "guided_grammar", "special tokens"),
    ({"structured_outputs": {}}, "structured_outputs", "needs"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "structural_tag"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex", "structured_outputs.choice"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format", "guided_regex"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "guided_regex"),
    ({"guided_regex": "a" * 70_000}, "guided_regex", "65536"),
]


@pytest.mark.parametrize(
    ("fields", "param", "word"), REFUSED, ids=[f"{number}-{param}" for number, (_, param, _) in enumerate(REFUSED)]
)
def test_what_cannot_be_obeyed_is_named(tokenizer: Tokenizer, fields: dict[str, Any], param: str, word: str) -> None:
    error = refused(tokenizer, **fields)
    assert error.param == param
    assert word in error.message
    assert "\n" not in error.message


def test_a_schema_that_is_not_strict_is_obeyed_as_far_as_it_can(tokenizer: Tokenizer) -> None:
    assert grammar_of(tokenizer, response_format=format_of(UNIQUE))


def test_tools_that_are_not_to_be_called_do_not_matter(tokenizer: Tokenizer) -> None:
    assert grammar_of(tokenizer, guided_regex="a+", tools=TOOLS, tool_choice="none") == regex_grammar("a+")


def test_a_grammar_that_takes_long_to_check(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitrank.serving.grammar.forms.MAX_CHECK_S", 0.0)
    error = refused(tokenizer, guided_choice=["one", "two", "three of them"])
    assert "too complex" in error.message


def test_without_the_library(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for fields, _ in ASKED:
        error = refused(tokenizer, **fields)
        assert "pip install splitrank[structured]" in error.message
    assert grammar_of(tokenizer, response_format={"type": "text"}) == ""


@pytest.mark.parametrize(("version", "refused_as"), [("1.8.3", "this is 1.8.3: pip install"), ("0.7", "this is 0.7: ")])
def test_a_library_that_is_too_old(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, refused_as: str
) -> None:
    """One line to whoever asks; a rank reads no vocabulary with it, and says nothing."""
    monkeypatch.setattr("splitrank.serving.grammar.library.installed_version", lambda: version)
    assert refused_as in refused(tokenizer, guided_regex="a+").message
    matchers = Matchers(tmp_path, 10, (1,))
    matchers.read_vocabulary()
    with pytest.raises(GrammarError, match=re.escape(refused_as)):
        matchers.matcher('start: "a"')


@pytest.mark.parametrize("version", ["1.9.0", "1.10.1", "2.0"])
def test_a_library_that_is_new_enough(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("splitrank.serving.grammar.library.installed_version", lambda: version)
    assert grammar_of(tokenizer, guided_regex="a+") == regex_grammar("a+")


def test_the_front_builds_no_vocabulary(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would hold Python's lock, and so stop all streams, for as long as that takes."""
    import llguidance

    monkeypatch.setattr(llguidance, "LLTokenizer", None)
    monkeypatch.setattr(llguidance._lib, "LLTokenizer", None)
    assert grammar_of(tokenizer, guided_regex="a+b+c+", enable_thinking=True)


CHAIN = "start: a0\n" + "".join(f"a{n}: a{n + 1}\n" for n in range(4000)) + 'a4000: "x"\n'
LISTS = {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(1400)} | {"1400": {}}
IN_A_PROCESS = """
import json, sys
from pathlib import Path
from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.openai.parser import COMPLETIONS_URL, RequestParser
from tests.support.front_fakes import VOCAB_SIZE, make_info, make_tokenizer
folder = Path(sys.argv[1])
tokenizer = make_tokenizer(folder)
info = make_info(tokenizer)
[generation] = RequestParser(tokenizer, info).parse(COMPLETIONS_URL, sys.stdin.buffer.read()).generations
matcher = Matchers(folder, VOCAB_SIZE, info.eos_token_ids).matcher(generation.params.grammar)
print(int(matcher.allowed(VOCAB_SIZE).sum()))
"""


@pytest.mark.parametrize(
    ("asked", "num_allowed"),
    [({"guided_grammar": CHAIN}, 1), ({"guided_json": {"$defs": LISTS, "$ref": "#/$defs/0"}}, 18)],
    ids=["rules", "schema"],
)
def test_a_deep_grammar_overflows_no_stack(tmp_path: Path, asked: dict[str, Any], num_allowed: int) -> None:
    """In a process of its own, which an overflow ends: front, then rank."""
    body = json.dumps({"prompt": "hi"} | asked, separators=(",", ":")).encode()
    command = [sys.executable, "-c", IN_A_PROCESS, str(tmp_path)]
    ended = subprocess.run(command, input=body, capture_output=True, timeout=scaled(ANSWER_S), check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(num_allowed).encode()), ended.stderr.decode()


def test_a_check_that_does_not_end_ends_its_request(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def endless(text: str) -> str:
        ended.wait()
        return text

    monkeypatch.setattr("splitrank.serving.openai.grammars.written_grammar", endless)
    monkeypatch.setattr("splitrank.serving.openai.grammars.MAX_WAIT_S", 0.01)
    try:
        assert "checking it took over 0.01 s" in refused(tokenizer, guided_grammar="start: x").message
    finally:
        ended.set()
