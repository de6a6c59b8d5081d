"""/v1/messages through Anthropic's client: whole, streamed in the right order, with tools and thoughts, and refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from splitrank.serving.openai import answers
from splitrank.serving.openai.messages.types_of_answers import (
    CountedTokens,
    MessageAnswer,
    MessageError,
    MessageEvent,
)
from tests.support.front_fakes import Front
from tests.support.http_helpers import serving

THOUGHT, SAID = "a thought", "I look."
CALL = "<tool_call>\n<function=look>\n<parameter=at>\n it\n</parameter>\n</function>\n</tool_call>"
TEXT = f"{THOUGHT}\n</think>\n\n{SAID}\n\n{CALL}"
TOOL: Any = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [TOOL],
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "enabled", "budget_tokens": 400},
}


@asynccontextmanager
async def connected(front: Front, api_key: str = "none") -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=str(front.http.base_url), api_key=api_key, max_retries=0) as client:
        yield client


def serving_agents(folder: Path, work: Any, text: str = TEXT, **options: Any) -> None:
    serving(folder, work, text, max_model_len=2000, **options)


def check_message(message: Any) -> None:
    thought, text, call = message.content
    assert (thought.type, thought.thinking, text.type, text.text) == ("thinking", THOUGHT, "text", SAID)
    assert (call.type, call.name, call.input) == ("tool_use", "look", {"at": " it"})
    assert (message.stop_reason, message.stop_sequence, message.role) == ("tool_use", None, "assistant")


def test_whole(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with connected(front) as client:
            message = await client.messages.create(**ASKED)
            counted = await client.messages.count_tokens(
                **{name: value for name, value in ASKED.items() if name != "max_tokens"}
            )
        check_message(message)
        assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens
        assert message.usage.output_tokens > 10
        answers.read_as(MessageAnswer, (await front.http.post("/v1/messages", json=ASKED)).content)
        counted_raw = await front.http.post("/v1/messages/count_tokens", json={"messages": ASKED["messages"]})
        answers.read_as(CountedTokens, counted_raw.content)

    serving_agents(tmp_path, work)


def test_streamed(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with connected(front) as client:
            events: list[Any] = [event async for event in await client.messages.create(**ASKED, stream=True)]
            async with client.messages.stream(**ASKED) as helper:
                check_message(await helper.get_final_message())
        kinds = [event.type for event in events if event.type != "ping"]
        order = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
        block = ["content_block_start", "content_block_delta", "content_block_stop"]
        assert order == ["message_start", *block, *block, *block, "message_delta", "message_stop"]
        assert [event.index for event in events if event.type == "content_block_start"] == [0, 1, 2]
        assert events[0].message.usage.input_tokens > 0
        assert events[-2].usage.output_tokens > 10
        raw = await front.http.post("/v1/messages", json=ASKED | {"stream": True})
        for event in raw.text.split("\n\n")[:-1]:
            name, data = event.split("\n")
            read = answers.read_as(MessageEvent, data.removeprefix("data: ").encode())
            assert name == f"event: {read.type}"

    serving_agents(tmp_path, work)


def test_a_conversation_goes_on(tmp_path: Path) -> None:
    """Blocks of an answer are sent back as they came; together they are the chat's messages."""

    async def work(front: Front) -> None:
        async with connected(front) as client:
            message = await client.messages.create(**ASKED)
            call: Any = message.content[-1]
            result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "nothing"}]}
            answer = {"role": "assistant", "content": [block.to_dict() for block in message.content]}
            turn = {
                "role": "user",
                "content": [result, {"type": "text", "text": "and "}, {"type": "text", "text": "now?"}],
            }
            messages: Any = [*ASKED["messages"], answer, turn]
            await client.messages.create(**ASKED | {"messages": messages})
        function = {"name": "look", "arguments": {"at": " it"}}
        chat = {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": SAID,
                    "reasoning_content": THOUGHT,
                    "tool_calls": [{"id": call.id, "type": "function", "function": function}],
                },
                {"role": "tool", "content": "nothing"},
                {"role": "user", "content": "and now?"},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "look", "description": "Looks.", "parameters": TOOL["input_schema"]},
                }
            ],
        }
        assert (await front.http.post("/v1/chat/completions", json=chat)).status_code == 200
        assert front.client.requests[-2][0] == front.client.requests[-1][0]

    serving_agents(tmp_path, work)


ENDS: list[tuple[dict[str, Any], str, list[tuple[str, str]]]] = [
    ({"thinking": None}, "end_turn", [("text", "he, llo")]),
    ({"thinking": {"type": "disabled"}}, "end_turn", [("text", "he, llo")]),
    ({"thinking": {"type": "adaptive"}}, "end_turn", [("thinking", "he, llo")]),
    ({"thinking": None, "chat_template_kwargs": {"enable_thinking": True}}, "end_turn", [("thinking", "he, llo")]),
    ({"thinking": None, "stop_sequences": [","]}, "stop_sequence", [("text", "he")]),
    ({"thinking": None, "max_tokens": 2}, "max_tokens", [("text", "he,")]),
]


def test_ends_and_thoughts(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for fields, reason, content in ENDS:
            message = (await front.http.post("/v1/messages", json=ASKED | fields)).json()
            assert message["stop_reason"] == reason
            assert message["stop_sequence"] == ("," if reason == "stop_sequence" else None)
            assert [(block["type"], block[block["type"]]) for block in message["content"]] == content

    serving_agents(tmp_path, work, "he, llo")


def test_a_call_that_is_cut_off_keeps_what_is_whole_of_it(tmp_path: Path) -> None:
    call = "<tool_call>\n<function=look>\n<parameter=at>\nit\n</parameter>\n<parameter=n>\n12345678"

    async def work(front: Front) -> None:
        num_tokens = len(front.engine.tokenizer.encode(call))
        asked = ASKED | {"thinking": None, "max_tokens": num_tokens}
        message = (await front.http.post("/v1/messages", json=asked)).json()
        assert message["stop_reason"] == "max_tokens"
        assert message["content"][0]["input"] == {"at": "it"}

    serving_agents(tmp_path, work, call + "90")


def test_redacted_thoughts_are_left_out(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        said, user = {"type": "text", "text": SAID}, {"role": "user", "content": "hi"}
        for blocks in ([{"type": "redacted_thinking", "data": "EmwK"}, said], [said]):
            turns: Any = [user, {"role": "assistant", "content": blocks}, user]
            async with connected(front) as client:
                await client.messages.create(**ASKED | {"messages": turns})
        assert front.client.requests[0][0] == front.client.requests[1][0]

    serving_agents(tmp_path, work)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]},
        "messages[0].content[0]",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "redacted_thinking", "data": "x"}]}]},
        "a block of type redacted_thinking cannot be in a message of the user",
    ),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name must be"),
    ({"tool_choice": {"type": "tool"}}, "needs a name"),
    ({"tool_choice": {"type": "tool", "name": "other"}}, "'other'"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
    ({"temperature": 3}, "temperature"),
    ({"never": 1}, "never"),
]


def test_refused(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for fields, said in REFUSED:
            response = await front.http.post("/v1/messages", json=ASKED | fields)
            assert response.status_code == 400
            error = answers.read_as(MessageError, response.content).error
            assert error.type == "invalid_request_error"
            assert said in error.message
        counted = {"messages": ASKED["messages"], "tools": [{"name": "a b", "input_schema": {}}]}
        response = await front.http.post("/v1/messages/count_tokens", json=counted)
        assert "tools[0].name must be" in answers.read_as(MessageError, response.content).error.message

    serving_agents(tmp_path, work)


def test_the_client_sees_its_exceptions(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with connected(front, "wrong") as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(**ASKED)
        async with connected(front, "key") as client:
            check_message(await client.messages.create(**ASKED))
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(**ASKED | {"model": "claude"})
            with pytest.raises(anthropic.BadRequestError, match="max_tokens is 5000"):
                await client.messages.create(**ASKED | {"max_tokens": 5000})

    serving_agents(tmp_path, work, api_key="key")


def test_an_error_inside_a_stream(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with connected(front) as client:
            stream = await client.messages.create(**ASKED, stream=True)
            while (await anext(stream)).type != "content_block_start":
                pass
            front.client.die("rank 0 was killed")
            with pytest.raises(anthropic.APIStatusError, match="rank 0 was killed"):
                [_ async for _ in stream]

    serving_agents(tmp_path, work, hang_after=1)
