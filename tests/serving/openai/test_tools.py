"""Tools of a chat: what the template is told, what is refused, and the calls in answers and streams."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.settings import DEFAULT_SETTINGS, ApiSettings
from splitrank.serving.text.tokenizer import Tokenizer
from splitrank.serving.text.tool_calls import CallForm
from tests.support.front_fakes import make_info, make_tokenizer
from tests.support.service_helpers import complete, stream

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "note": {"type": "string"}}},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "tools": [ADD, NOW]}
ARGUMENTS = "<parameter=a>\n5\n</parameter>\n<parameter=note>\n  x\n</parameter>\n"
ADDED = f"<tool_call>\n<function=add>\n{ARGUMENTS}</function>\n</tool_call>"
CALLED = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
RAW = ApiSettings(tool_call_parser="none")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def parse(tokenizer: Tokenizer, settings: ApiSettings = DEFAULT_SETTINGS, **fields: Any) -> ParsedRequest:
    parser = RequestParser(tokenizer, make_info(tokenizer, max_model_len=2000), settings)
    return parser.parse(CHAT_URL, json.dumps(CHAT | fields).encode())


def refused(tokenizer: Tokenizer, settings: ApiSettings = DEFAULT_SETTINGS, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(tokenizer, settings, **fields)
    assert caught.value.status == 400
    return caught.value


def prompt(tokenizer: Tokenizer, request: ParsedRequest) -> str:
    return b"".join(map(tokenizer.token_bytes, request.prompts[0].token_ids)).decode()


# ------------------------------------------------------------------ requests


def test_the_template_is_told_of_the_tools(tokenizer: Tokenizer) -> None:
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}  # type: ignore[dict-item]
    request = parse(tokenizer, tools=[strict, NOW])
    assert prompt(tokenizer, request).startswith(json.dumps(ADD) + json.dumps(NOW) + "<|im_start|>user")
    assert request.form.calls == CallForm({"add": {"a": ("integer",), "note": ("string",)}, "now": {}})
    assert parse(tokenizer, tools=[], tool_choice="auto").form.calls is None
    assert parse(tokenizer, tool_choice="none") == parse(tokenizer, tools=None)
    assert parse(tokenizer, parallel_tool_calls=False).form.calls == CallForm(request.form.calls.types, one_only=True)


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def test_tools_that_are_not_allowed_are_as_if_they_were_not_there(tokenizer: Tokenizer) -> None:
    for mode in ("auto", "required"):
        for names, tools in ((["now"], [NOW]), (["now", "add"], [ADD, NOW])):
            narrowed = parse(tokenizer, tool_choice=allowed(mode, *names))
            assert narrowed == parse(tokenizer, tools=tools, tool_choice=mode)
            assert bool(narrowed.generations[0].params.grammar) == (mode == "required")


def test_a_call_that_must_come_needs_the_library(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for choice in ("required", {"type": "function", "function": {"name": "now"}}):
        error = refused(tokenizer, tool_choice=choice)
        assert error.param == "tool_choice"
        assert "pip install splitrank[structured]" in error.message
    assert parse(tokenizer, tool_choice="auto").form.calls is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}, "tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tool_choice": allowed("auto", "sub")}, "tool_choice"),
        ({"tool_choice": allowed("required", "now"), "tools": None}, "tool_choice"),
        ({"tool_choice": allowed("none", "now")}, "tool_choice.allowed_tools.mode"),
        ({"tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tool_choice": allowed("auto", "now"), "tools": [NOW, ADD, ADD]}, "tools[2].function.name"),
        ({"tools": [NOW, NOW]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": {}}, "tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(tokenizer: Tokenizer, fields: dict[str, Any], param: str) -> None:
    assert refused(tokenizer, **fields).param == param


def test_a_template_that_would_not_mention_the_tools(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert "knows no tools" in refused(tokenizer).message
    parse(tokenizer, tool_choice="none")


# ------------------------------------------------------------------ answers


def streamed_calls(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls as a client joins them; ids come once, with the name."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls", []):
            if delta["index"] == len(calls):
                assert delta["id"].startswith("call_")
                calls.append({"name": delta["function"]["name"], "arguments": ""})
            else:
                assert set(delta) == {"index", "function"}
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    return calls


def whole_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    assert {call["type"] for call in calls} == {"function"}
    return [call["function"] for call in calls]


def answered(folder: Path, fields: dict[str, Any], text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The choice, after a look at the stream: it says the same."""
    choice = complete(folder, CHAT_URL, CHAT | fields, text, max_model_len=2000)["choices"][0]
    chunks = stream(folder, CHAT_URL, CHAT | fields, text, max_model_len=2000)
    calls = streamed_calls(chunks)
    message = choice["message"]
    assert calls == (whole_calls(message) if "tool_calls" in message else [])
    for name in ("content", "reasoning_content"):
        assert "".join(chunk["choices"][0]["delta"].get(name) or "" for chunk in chunks) == (message[name] or "")
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    return choice, calls


def test_thoughts_text_and_calls(tmp_path: Path) -> None:
    choice, calls = answered(tmp_path, {}, f"why\n</think>\n\nI add.\n\n{ADDED}\n{CALLED}")
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("why", "I add.")
    assert calls == [{"name": "add", "arguments": '{"a": 5, "note": "  x"}'}, {"name": "now", "arguments": "{}"}]


def test_a_call_alone_has_no_content(tmp_path: Path) -> None:
    choice, _ = answered(tmp_path, {"enable_thinking": False}, CALLED)
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")


def test_a_call_inside_an_open_thought(tmp_path: Path) -> None:
    choice, calls = answered(tmp_path, {}, "why not <tool_call>?\n" + CALLED)
    assert choice["message"]["reasoning_content"] == "why not <tool_call>?"
    assert calls == [{"name": "now", "arguments": "{}"}]


def test_no_call_at_all(tmp_path: Path) -> None:
    choice, calls = answered(tmp_path, {"enable_thinking": False}, "I <tool_call>\nnothing.\n")
    assert (choice["message"]["content"], choice["finish_reason"], calls) == ("I <tool_call>\nnothing.\n", "stop", [])


def test_a_call_that_is_cut_off(tmp_path: Path, tokenizer: Tokenizer) -> None:
    max_tokens = len(tokenizer.encode(ADDED.partition("<parameter=note")[0]))
    choice, calls = answered(tmp_path, {"enable_thinking": False, "max_tokens": max_tokens}, ADDED)
    assert choice["finish_reason"] == "length"
    assert calls == [{"name": "add", "arguments": '{"a": 5'}]


def test_one_call_ends_the_answer(tmp_path: Path) -> None:
    fields = {"enable_thinking": False, "parallel_tool_calls": False}
    choice, calls = answered(tmp_path, fields, f"{ADDED}\n{CALLED} and more")
    assert ([call["name"] for call in calls], choice["finish_reason"]) == (["add"], "tool_calls")
    fields = {"tool_choice": {"type": "function", "function": {"name": "add"}}}
    choice, calls = answered(tmp_path, fields, f"</think>\n\n{ADDED}\n{CALLED} and more")
    assert calls == [{"name": "add", "arguments": '{"a": 5, "note": "  x"}'}]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)


def test_without_a_parser_calls_are_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    fields = CHAT | {"enable_thinking": False}
    message = complete(tmp_path, CHAT_URL, fields, CALLED, RAW, max_model_len=2000)["choices"][0]["message"]
    assert (message["content"], "tool_calls" in message) == (CALLED, False)
    assert "tool-call-parser" in refused(tokenizer, RAW, tools=[NOW], tool_choice="required").message


def test_logprobs_and_token_ids_of_calls(tmp_path: Path) -> None:
    fields = CHAT | {"enable_thinking": False, "logprobs": True, "return_token_ids": True}
    choice = complete(tmp_path, CHAT_URL, fields, CALLED, max_model_len=2000)["choices"][0]
    chunks = stream(tmp_path, CHAT_URL, fields, CALLED, max_model_len=2000)
    parts = [chunk["choices"][0] for chunk in chunks]
    assert [t for part in parts for t in part.get("token_ids", [])] == choice["token_ids"]
    assert [e for part in parts for e in (part["logprobs"] or {"content": []})["content"]] == choice["logprobs"][
        "content"
    ]
