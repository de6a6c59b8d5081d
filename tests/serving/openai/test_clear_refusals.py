"""Errors say what would have been right, and which tool is at fault. A message of Anthropic's API may be continued."""

import json
from typing import Any

import pytest

from splitrank.serving.grammar.library import one_line
from splitrank.serving.openai.dialects import MESSAGES_URL, RESPONSES_URL
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COUNT_TOKENS_URL, RequestParser
from splitrank.serving.openai.requests import DirectAnswer, ParsedRequest
from tests.support.front_fakes import make_info, make_tokenizer

USER = {"role": "user", "content": "hi"}
BODIES: dict[str, dict[str, Any]] = {
    CHAT_URL: {"messages": [USER]},
    RESPONSES_URL: {"input": "hi"},
    MESSAGES_URL: {"messages": [USER], "max_tokens": 9},
    COUNT_TOKENS_URL: {"messages": [USER]},
}


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> RequestParser:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return RequestParser(tokenizer, make_info(tokenizer))


def parse(parser: RequestParser, url: str, **fields: Any) -> ParsedRequest:
    parsed = parser.parse(url, json.dumps(BODIES[url] | fields).encode())
    assert isinstance(parsed, ParsedRequest)
    return parsed


def refusal(parser: RequestParser, url: str, **fields: Any) -> str:
    with pytest.raises(ApiError) as caught:
        parse(parser, url, **fields)
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "fields", "said"),
    [
        (CHAT_URL, {"messages": [{"role": "ghost"}]}, "must be 'assistant' or 'developer' or 'system' or 'tool' or "),
        (CHAT_URL, {"tool_choice": "any"}, "tool_choice must be 'auto' or 'none' or 'required', not 'any'"),
        (CHAT_URL, {"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type must be 'function', not"),
        (RESPONSES_URL, {"tools": [{"type": "mcp"}]}, "tools[0].type must be 'function', not 'mcp'"),
        (RESPONSES_URL, {"input": [{"type": "item_reference"}]}, "'function_call' or 'function_call_output' or "),
        (
            RESPONSES_URL,
            {"include": ["x"]},
            "include[0] must be 'message.output_text.logprobs' or 'reas",
        ),
        (MESSAGES_URL, {"thinking": {"type": "on"}}, "thinking.type must be 'adaptive' or 'disabled' or 'enabled'"),
        (MESSAGES_URL, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'text' or 'thinking' or "),
    ],
)
def test_a_value_that_is_none_of_a_few_is_answered_with_these(
    parser: RequestParser, url: str, fields: dict[str, Any], said: str
) -> None:
    assert said in refusal(parser, url, **fields)


def test_the_tool_whose_schema_cannot_be_enforced_is_named(parser: RequestParser) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"properties": {"a": {"type": kind}}}}}
        for name, kind in (("good", "integer"), ("wrong", "strng"))
    ]
    message = refusal(parser, CHAT_URL, tools=tools, tool_choice="required")
    assert message.startswith("tool_choice: wrong: ")
    assert message.endswith("Invalid type: strng")  # and no lines of a grammar, which the client did not write


def test_lines_of_a_grammar_are_left_out_of_an_error() -> None:
    message = "at 1(8): unknown name\n   1 | start: foo\n             ^\n\nand more"
    assert one_line(message) == "at 1(8): unknown name and more"


def test_a_label_of_the_user_changes_nothing(parser: RequestParser) -> None:
    assert parse(parser, RESPONSES_URL, user="me").prompts == parse(parser, RESPONSES_URL).prompts


@pytest.mark.parametrize("content", ["It is", [{"type": "text", "text": "It is"}]])
def test_an_answer_continues_the_assistants_last_message(parser: RequestParser, content: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "It is"}]
    continued = parse(parser, CHAT_URL, messages=messages, continue_final_message=True).prompts
    messages = [USER, {"role": "assistant", "content": content}]
    assert parse(parser, MESSAGES_URL, messages=messages).prompts == continued
    counted = parser.parse(COUNT_TOKENS_URL, json.dumps({"messages": messages}).encode())
    assert isinstance(counted, DirectAnswer)
    assert counted.body == {"input_tokens": len(continued[0].token_ids)}
    assert "no thoughts" in refusal(parser, MESSAGES_URL, messages=messages, thinking={"type": "enabled"})


def test_a_call_of_a_tool_is_not_continued(parser: RequestParser) -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    request = parse(parser, MESSAGES_URL, messages=[USER, {"role": "assistant", "content": [call]}])
    assert request.prompts[0].token_ids[-3:] == parse(parser, MESSAGES_URL).prompts[0].token_ids[-3:]
