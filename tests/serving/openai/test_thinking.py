"""Thoughts beside the answer, whole and streamed, and who decides whether there are any."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.settings import ApiSettings
from tests.support.front_fakes import make_info, make_tokenizer
from tests.support.service_helpers import complete, stream

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = "why\nnot\n</think>\n\nhe, llo"
RAW = ApiSettings(reasoning_parser="none")


def streamed(chunks: list[dict[str, Any]]) -> tuple[str, str]:
    """Thoughts and answer, which never share a delta; thoughts come by both names."""
    reasoning = answer = ""
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        assert delta.get("reasoning_content") == delta.get("reasoning")
        assert not (delta.get("reasoning") and delta.get("content"))
        reasoning, answer = reasoning + (delta.get("reasoning") or ""), answer + (delta.get("content") or "")
    return reasoning, answer


def test_thoughts_are_apart_whole_and_streamed(tmp_path: Path) -> None:
    body = complete(tmp_path, CHAT_URL, CHAT, TEXT)
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "he, llo",
        "reasoning_content": "why\nnot",
        "reasoning": "why\nnot",
        "refusal": None,
    }
    chunks = stream(tmp_path, CHAT_URL, CHAT | {"stream_options": {"include_usage": True}}, TEXT)
    assert streamed(chunks) == ("why\nnot", "he, llo")
    assert chunks[-1]["usage"] == body["usage"]
    tokens = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert tokens == len(make_tokenizer(tmp_path).encode(TEXT.partition("\n\nhe")[0]))


def test_cut_off_in_the_middle_of_thinking(tmp_path: Path) -> None:
    request = CHAT | {"max_tokens": 4}
    body = complete(tmp_path, CHAT_URL, request, TEXT)
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
    assert choice["message"]["reasoning_content"] == "why\nno"[: len(choice["message"]["reasoning_content"])] != ""
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == body["usage"]["completion_tokens"] == 4
    assert streamed(stream(tmp_path, CHAT_URL, request, TEXT)) == (choice["message"]["reasoning_content"], "")


def test_an_empty_answer_is_text(tmp_path: Path) -> None:
    message = complete(tmp_path, CHAT_URL, CHAT, "why\n</think>\n\n")["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("", "why")
    message = complete(tmp_path, CHAT_URL, CHAT, "\n</think>\n\nyes")["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("yes", None)


def test_a_stop_string_in_a_thought_does_not_end_it(tmp_path: Path) -> None:
    request = CHAT | {"stop": ["\n", ", "]}
    choice = complete(tmp_path, CHAT_URL, request, TEXT)["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("why\nnot", "he")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ", ")
    assert streamed(stream(tmp_path, CHAT_URL, request, TEXT)) == ("why\nnot", "he")


def test_no_parser_no_thinking_and_completions_give_the_raw_text(tmp_path: Path) -> None:
    assert complete(tmp_path, CHAT_URL, CHAT, TEXT, RAW)["choices"][0]["message"]["content"] == TEXT
    assert streamed(stream(tmp_path, CHAT_URL, CHAT, TEXT, RAW)) == ("", TEXT)
    off = CHAT | {"reasoning_effort": "none"}
    assert complete(tmp_path, CHAT_URL, off, TEXT)["choices"][0]["message"]["content"] == TEXT
    prompt = {"prompt": "<think>\n", "max_tokens": 60}
    assert complete(tmp_path, COMPLETIONS_URL, prompt, TEXT)["choices"][0]["text"] == TEXT


def test_logprobs_of_all_tokens(tmp_path: Path) -> None:
    request = CHAT | {"logprobs": True}
    content = complete(tmp_path, CHAT_URL, request, "ab</think>cd")["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["ab", "</think>", "cd", "<|im_end|>"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in stream(tmp_path, CHAT_URL, request, "ab</think>cd")]
    assert [entry for part in parts if part for entry in part["content"]] == content


# ------------------------------------------------------------------ who decides


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> RequestParser:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return RequestParser(tokenizer, make_info(tokenizer))


def parse(parser: RequestParser, **fields: Any) -> ParsedRequest:
    return parser.parse(CHAT_URL, json.dumps(CHAT | fields).encode())


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "xhigh"}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "high", "enable_thinking": False}, False),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": None}}, False),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": None}}, False),
        ({"chat_template_kwargs": {"enable_thinking": None}}, True),
    ],
)
def test_thinking_is_switched(parser: RequestParser, fields: dict[str, Any], thinks: bool) -> None:
    request = parse(parser, **fields)
    assert request.form.thinking is thinks
    plain = parse(parser, chat_template_kwargs={"enable_thinking": thinks})
    assert request.prompts == plain.prompts


def test_an_unknown_effort_is_refused(parser: RequestParser) -> None:
    with pytest.raises(ApiError) as caught:
        parse(parser, reasoning_effort="huge")
    assert (caught.value.status, caught.value.param) == (400, "reasoning_effort")
