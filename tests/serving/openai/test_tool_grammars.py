"""Calls that must come: whatever the grammar allows is read as calls of the tools, with arguments of their schemas."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.grammar.forms import lark_grammar
from splitrank.serving.grammar.library import GrammarError
from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.openai.parser import CHAT_URL, RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.tool_grammars import calls_grammar
from splitrank.serving.openai.types import FunctionDefinition, Tool
from splitrank.serving.text.argument_types import parameter_types
from splitrank.serving.text.thinking import ThinkingSplitter
from splitrank.serving.text.tokenizer import Tokenizer
from splitrank.serving.text.tool_calls import CALL_OPENING, CallForm, ToolCallParser
from tests.support.front_fakes import make_info
from tests.support.tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 512
PLACE = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"]}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "$defs": {"Place": {**PLACE, "additionalProperties": False}, "Unit": {"enum": ["km", "a mile"]}},
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 4, "pattern": "^[a-z\n]+$"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "place": {"$ref": "#/$defs/Place"},
        "unit": {"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]},
    },
    "required": ["count", "unit"],
}


def tool(name: str, parameters: dict[str, Any] | None = None, strict: bool | None = None) -> Tool:
    return Tool("function", FunctionDefinition(name, None, parameters, strict))


TOOLS = [
    tool("measure", PARAMETERS),
    tool("now"),
    tool("say", {"properties": {"text": {"type": "string"}}, "required": ["text"]}),
]


class Small:
    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_folder(write_tokenizer(folder, VOCAB_SIZE))
        self.eos = tuple(self.tokenizer.encode("<|im_end|>"))
        self.matchers = Matchers(folder, VOCAB_SIZE, self.eos)

    def takes(self, grammar: str, text: str) -> bool:
        """Whether ``text`` is a whole answer of the grammar."""
        matcher = self.matchers.matcher(grammar)
        for token in self.tokenizer.encode(text):
            if not matcher.allowed(VOCAB_SIZE)[token]:
                return False
            matcher.advance(token)
        return bool(matcher.allowed(VOCAB_SIZE)[self.eos[0]])

    def walk(self, grammar: str, seed: int, limit: int = 800) -> str:
        """The text of random allowed tokens."""
        matcher, draw, tokens = self.matchers.matcher(grammar), random.Random(seed), []
        for _ in range(limit):
            token = draw.choice(matcher.allowed(VOCAB_SIZE).nonzero()[0].tolist())
            matcher.advance(token)
            if token in self.eos:
                return b"".join(map(self.tokenizer.token_bytes, tokens)).decode()
            tokens.append(token)
        raise AssertionError("the walk has come to no end")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("tokenizer"))


def read(text: str, tools: list[Tool] = TOOLS) -> list[tuple[str, dict[str, Any]]]:
    """The calls, by the reader of answers; there is nothing else in the text."""
    parser = ToolCallParser(
        CallForm({one.function.name: parameter_types(one.function.parameters or {}) for one in tools})
    )
    parser.push(text)
    parser.finish(is_cut=False)
    rest, deltas = parser.take()
    assert rest == ""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        calls = [*calls, (delta.name, "")] if delta.name is not None else calls
        calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return [(name, json.loads(arguments)) for name, arguments in calls]


def call(function: str, /, **parameters: str) -> str:
    values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={function}>\n{values}</function>\n</tool_call>"


def check_measure(arguments: dict[str, Any]) -> None:
    assert {"count", "unit"} <= arguments.keys() <= {"name", "count", "place", "unit"}
    assert type(arguments["count"]) is int
    assert 0 <= arguments["count"] <= 99
    assert arguments["unit"] in ("km", "a mile", None)
    assert arguments.get("place", {"x": 0}).keys() == {"x"}
    assert 1 <= len(arguments.get("name", "a")) <= 4


def test_whatever_comes_is_calls_of_the_tools_with_arguments_of_their_schemas(small: Small) -> None:
    grammar = lark_grammar(calls_grammar(TOOLS[:2], one_only=False))
    found = [one for seed in range(30) for one in read(small.walk(grammar, seed))]
    for name, arguments in found:
        assert name in ("measure", "now")
        check_measure(arguments) if name == "measure" else check_empty(arguments)
    assert {name for name, _ in found} == {"measure", "now"}
    assert {len(arguments) for name, arguments in found if name == "measure"} >= {2, 3, 4}


def check_empty(arguments: dict[str, Any]) -> None:
    assert arguments == {}


def test_what_a_model_may_say(small: Small) -> None:
    several, one = (lark_grammar(calls_grammar(TOOLS, one_only)) for one_only in (False, True))
    measure, now = call("measure", count="5", unit="km"), call("now")
    for text in (now, measure, call("measure", name="ab", count="5", place='{"x": 3}', unit="null")):
        assert small.takes(one, text)
        assert small.takes(several, f"{text}\n{now}")
        assert small.takes(several, f"{text}\n\n{now}")
        assert not small.takes(one, f"{text}\n{now}")
    for text in (
        "",
        "I would rather not.",
        f"Well: {now}",
        call("other"),
        call("measure", count="5"),
        call("measure", count="five", unit="km"),
        call("measure", count="500", unit="km"),
        call("measure", unit="km", count="5"),
        call("measure", count="5", unit="mm"),
        call("measure", name="abcde", count="5", unit="km"),
        call("measure", name="A", count="5", unit="km"),
        call("measure", count="5", place='{"x": "a"}', unit="km"),
        call("measure", count="5", unit="km", more="1"),
        call("now", more="1"),
    ):
        assert not small.takes(several, text), text


def test_a_text_may_be_any_that_is_read_as_one(small: Small) -> None:
    grammar = lark_grammar(calls_grammar(TOOLS, one_only=True))
    for text in ("", "a\n\nb\n", "  x", "</parameter> y", "<parameter=text>\n1", "if x </function>", '"quoted"', "é🦊"):
        assert small.takes(grammar, call("say", text=text)), text
        assert read(call("say", text=text)) == [("say", {"text": text})]
    for text in (
        "a</parameter></function>",
        "a</parameter>\n\n<parameter=b>",
        "</parameter></tool_call>",
        "</function> </tool_call>",
    ):
        assert not small.takes(grammar, call("say", text=text)), text


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({}, ["x", "5", "[1]"], []),
        ({"type": ["string", "integer"]}, ["x", "5"], []),
        ({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}, ["ab", "null"], ["abc"]),
        ({"type": "array", "items": {"type": "integer"}}, ["[1, 2]", "[]"], ["1", "[1"]),
        ({"const": 5}, ["5"], ["6", "55"]),
        ({"enum": ["a\nb", 2, None, {"k": 1}]}, ["a\nb", "2", "null", '{"k": 1}'], ["a", "3"]),
        ({"type": "string", "pattern": "b/c"}, ["ab/cd"], ["bc"]),
        ({"type": "string", "pattern": "(?=a)"}, ["anything"], []),
        ({"type": "object"}, ['{"a": "</parameter>"}'], ["[]"]),
    ],
)
def test_schemas_of_a_value(small: Small, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    asked = tool("f", {"properties": {"v": schema}, "required": ["v"]})
    grammar = lark_grammar(calls_grammar([asked], one_only=True))
    assert [small.takes(grammar, call("f", v=value)) for value in good + bad] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("parameters", "strict", "reason"),
    [
        ({"properties": {"a<b": {}}}, None, "cannot name"),
        ({"properties": {"a": {"$ref": "#/$defs/None"}}}, None, "not there"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, True, "cannot be enforced"),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, True, "uniqueItems"),
        ({"properties": {"a": {"type": "array", "items": {"$ref": "#/nowhere"}}}}, None, "nowhere"),
    ],
)
def test_what_cannot_be_enforced(parameters: dict[str, Any], strict: bool | None, reason: str) -> None:
    with pytest.raises(GrammarError, match=reason):
        lark_grammar(calls_grammar([tool("f", parameters, strict)], one_only=True))


def test_schemas_that_take_long_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitrank.serving.grammar.forms.MAX_CHECK_S", 0.0)
    patterns = {f"p{number}": {"type": "string", "pattern": f"a{number}b"} for number in range(50)}
    with pytest.raises(GrammarError, match="too complex"):
        calls_grammar([tool("f", {"properties": patterns})], one_only=True)


# ------------------------------------------------------------------ in requests


def parse(small: Small, **fields: Any) -> ParsedRequest:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [describe(one) for one in TOOLS], **fields}
    parser = RequestParser(small.tokenizer, make_info(small.tokenizer, max_model_len=2000))
    parsed = parser.parse(CHAT_URL, json.dumps(body).encode())
    assert isinstance(parsed, ParsedRequest)
    return parsed


def describe(one: Tool) -> dict[str, Any]:
    function = one.function
    return {"type": "function", "function": {"name": function.name, "parameters": function.parameters or {}}}


def test_a_named_tool_is_called_once_and_alone(small: Small) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    grammar = parse(small, tool_choice=choice, enable_thinking=False).generations[0].params.grammar
    assert small.takes(grammar, call("now"))
    assert not small.takes(grammar, call("say", text="a"))
    assert not small.takes(grammar, call("now") + "\n" + call("now"))


def test_the_calls_begin_behind_the_thoughts_and_not_in_them(small: Small) -> None:
    request = parse(small, tool_choice="required", parallel_tool_calls=False)
    grammar = request.generations[0].params.grammar
    assert request.form.thinking
    assert small.takes(grammar, f"so <tool_call> it is\n</think>\n\n{call('now')}")
    assert not small.takes(grammar, call("now"))
    inside = f"so {call('other')}\n</think>\n\n{call('now')}"
    assert ThinkingSplitter(True, CALL_OPENING).push(inside)[1].startswith("<tool_call>")  # what the reader would find
    assert not small.takes(grammar, inside)


def test_a_form_beside_tools_is_for_answers_that_call_none(small: Small) -> None:
    form = {"response_format": {"type": "json_object"}}
    grammar = parse(small, **form, enable_thinking=False).generations[0].params.grammar
    assert small.takes(grammar, '{"a": 1}')
    assert small.takes(grammar, call("say", text="a") + "\n" + call("now"))
    assert not small.takes(grammar, "I say")
    must = parse(small, **form, tool_choice="required", enable_thinking=False).generations[0].params.grammar
    assert small.takes(must, call("now"))
    assert not small.takes(must, '{"a": 1}')
    thinks = parse(small, **form).generations[0].params.grammar
    assert small.takes(thinks, 'so\n</think>\n\n{"a": 1}')
    assert small.takes(thinks, f"so\n</think>\n\n{call('now')}")
