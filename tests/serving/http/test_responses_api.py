"""/v1/responses through the official client: whole, streamed in order, with tools and thoughts, and refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from splitrank.serving.grammar.forms import ANY_OBJECT, after_thinking, json_grammar
from splitrank.serving.openai import answers
from splitrank.serving.openai.responses.types_of_answers import MessageItem, Response, ResponseEvent
from tests.support.front_fakes import Front
from tests.support.http_helpers import check_error, serving

THOUGHT, SAID = "a thought", "I look."
CALL = "<tool_call>\n<function=look>\n<parameter=at>\n it\n</parameter>\n</function>\n</tool_call>"
TEXT = f"{THOUGHT}\n</think>\n\n{SAID}\n\n{CALL}"
TOOL: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    "strict": True,
}
ASKED: dict[str, Any] = {"model": "tiny", "input": "hi", "tools": [TOOL], "instructions": "be brief"}


@asynccontextmanager
async def connected(front: Front) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{front.http.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def serving_agents(folder: Path, work: Any, text: str = TEXT) -> None:
    serving(folder, work, text, max_model_len=2000)


def check_output(output: list[Any]) -> None:
    thought, message, call = output
    assert [part.text for part in thought.content] == [THOUGHT]
    assert [part.text for part in message.content] == [SAID]
    assert (call.name, call.arguments) == ("look", '{"at": " it"}')
    assert {item.status for item in output} == {"completed"}
    assert len({item.id for item in output}) == 3


def test_whole(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with connected(front) as client:
            response = await client.responses.create(**ASKED, reasoning={"effort": "low", "summary": "auto"})
        assert (response.status, response.output_text) == ("completed", SAID)
        check_output(response.output)
        assert (response.instructions, response.tools[0].name, response.tool_choice) == ("be brief", "look", "auto")
        usage = response.usage
        assert usage is not None
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
        raw = await front.http.post("/v1/responses", json=ASKED)
        answers.read_as(Response, raw.content)

    serving_agents(tmp_path, work)


def test_streamed(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with connected(front) as client:
            stream = await client.responses.create(**ASKED, stream=True)
            events: list[Any] = [event async for event in stream]
            async with client.responses.stream(**ASKED) as helper:
                [_ async for _ in helper]
                check_output((await helper.get_final_response()).output)
        assert [event.sequence_number for event in events] == [*range(len(events))]
        kinds = [event.type.removeprefix("response.") for event in events]
        order = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
        part = ["output_item.added", "content_part.added"]
        done = ["content_part.done", "output_item.done"]
        assert order == [
            "created", "in_progress",
            *part, "reasoning_text.delta", "reasoning_text.done", *done,
            *part, "output_text.delta", "output_text.done", *done,
            "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
            "completed",
        ]  # fmt: skip
        check_output(events[-1].response.output)
        assert events[0].response.output == []
        for kind, text in (
            ("reasoning_text", THOUGHT),
            ("output_text", SAID),
            ("function_call_arguments", '{"at": " it"}'),
        ):
            deltas = [event.delta for event in events if event.type == f"response.{kind}.delta"]
            assert "".join(deltas) == text
        raw = await front.http.post("/v1/responses", json=ASKED | {"stream": True})
        for event in raw.text.split("\n\n")[:-1]:
            name, data = event.split("\n")
            read = answers.read_as(ResponseEvent, data.removeprefix("data: ").encode())
            assert name == f"event: {read.type}"

    serving_agents(tmp_path, work)


def test_a_conversation_goes_on(tmp_path: Path) -> None:
    """Items of an answer are sent back as they came; together they are the chat's messages."""

    async def work(front: Front) -> None:
        async with connected(front) as client:
            output = (await client.responses.create(**ASKED)).output
            call: Any = output[-1]
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "nothing"}
            items: Any = [{"role": "user", "content": "hi"}, *(item.to_dict() for item in output), result]
            await client.responses.create(**ASKED | {"input": items})
            parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, *items[1:-1]]
            parts.append({**result, "output": [{"type": "input_text", "text": "nothing"}]})
            await client.responses.create(**ASKED | {"input": parts})
            function = {"name": "look", "arguments": call.arguments}
            messages: Any = [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": SAID,
                    "reasoning_content": THOUGHT,
                    "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
                },
                {"role": "tool", "tool_call_id": call.call_id, "content": "nothing"},
            ]
            described = {name: value for name, value in TOOL.items() if name != "type"}
            tools: Any = [{"type": "function", "function": described}]
            await client.chat.completions.create(model="tiny", messages=messages, tools=tools)
        _, first, second, chat = [prompt for prompt, _ in front.client.requests]
        assert first == second == chat

    serving_agents(tmp_path, work)


def test_only_some_tools_are_allowed(tmp_path: Path) -> None:
    other = TOOL | {"name": "other"}

    async def work(front: Front) -> None:
        for mode in ("auto", "required"):
            choice: Any = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "look"}]}
            async with connected(front) as client:
                response = await client.responses.create(**ASKED | {"tools": [TOOL, other], "tool_choice": choice})
                await client.responses.create(**ASKED | {"tool_choice": mode})
            assert len(response.tools) == 2
            assert response.to_dict()["tool_choice"] == choice
            narrowed, plain = front.client.requests[-2:]
            assert (narrowed[0], narrowed[1].grammar) == (plain[0], plain[1].grammar)

    serving_agents(tmp_path, work)


LOGPROBS: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT, SAID),
        (f"{THOUGHT}\n</think>\n\n{CALL}\n{CALL}", ""),
        (f"{THOUGHT}\n</think>\n\n{CALL}\nSo é it is", "So é it is"),
        (f"{THOUGHT}</think>", ""),
    ],
)
def test_log_probabilities_are_those_of_the_text(tmp_path: Path, text: str, said: str) -> None:
    async def work(front: Front) -> None:
        raw = await front.http.post("/v1/responses", json=ASKED | LOGPROBS)
        response = answers.read_as(Response, raw.content)
        assert response.top_logprobs == 2
        assert front.client.requests[-1][1].logprobs == 2
        texts = [item.content[0] for item in response.output if isinstance(item, MessageItem)]
        entries = [entry for one in texts for entry in one.logprobs]
        assert b"".join(bytes(entry.bytes) for entry in entries).decode().strip() == said
        assert {len(entry.top_logprobs) for entry in entries} <= {2}
        async with connected(front) as client:
            stream = await client.responses.create(**ASKED, **LOGPROBS, stream=True)
            events: list[Any] = [event async for event in stream]
        whole = msgspec.to_builtins(entries)
        deltas = [one for event in events if event.type.endswith("text.delta") for one in logprobs_of(event)]
        done = [one for event in events if event.type == "response.output_text.done" for one in logprobs_of(event)]
        assert done == whole
        assert deltas == whole[: len(deltas)]
        final = [item for item in events[-1].response.output if item.type == "message"]
        assert [one.to_dict() for item in final for one in item.content[0].logprobs] == whole

    serving_agents(tmp_path, work, text)


def logprobs_of(event: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = event.to_dict().get("logprobs", [])
    return found


def test_log_probabilities_come_if_they_are_asked_for(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for fields, number in (({}, None), ({"top_logprobs": 0}, None), ({"include": LOGPROBS["include"]}, 0)):
            await front.http.post("/v1/responses", json=ASKED | fields)
            assert front.client.requests[-1][1].logprobs == number
        refused = await front.http.post("/v1/responses", json=ASKED | {"top_logprobs": 2})
        check_error(refused, 400)
        assert refused.json()["error"]["param"] == "top_logprobs"

    serving_agents(tmp_path, work)


@pytest.mark.parametrize("stream", [False, True])
def test_cut_off(tmp_path: Path, stream: bool) -> None:
    async def work(front: Front) -> None:
        async with connected(front) as client:
            asked = ASKED | {"max_output_tokens": 3}
            if stream:
                events: Any = [event async for event in await client.responses.create(**asked, stream=True)]
                assert events[-1].type == "response.incomplete"
                response = events[-1].response
            else:
                response = await client.responses.create(**asked)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        [thought] = response.output
        assert (thought.status, thought.type) == ("incomplete", "reasoning")

    serving_agents(tmp_path, work)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": "a" * 9000}, "input"),
    ({"max_output_tokens": 5000}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "objct"}}}}, "text.format"),
    ({"never": 1}, "never"),
]


def test_refused(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for fields, param in REFUSED:
            response = await front.http.post("/v1/responses", json=ASKED | {"tools": []} | fields)
            check_error(response, 400)
            assert response.json()["error"]["param"] == param

    serving_agents(tmp_path, work)


def test_the_form_of_an_answer(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    forms = [
        ({"type": "json_object"}, json_grammar(ANY_OBJECT)),
        ({"type": "json_schema", "name": "x", "schema": schema, "strict": True}, json_grammar(schema)),
    ]

    async def work(front: Front) -> None:
        for form, grammar in forms:
            response = await front.http.post("/v1/responses", json=ASKED | {"tools": [], "text": {"format": form}})
            answered = response.json()["text"]["format"]
            assert answered | form == answered
            assert front.client.requests[-1][1].grammar == after_thinking(grammar)

    serving_agents(tmp_path, work)


def test_what_asks_for_nothing_is_taken(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        harmless = {
            "store": True, "background": False, "truncation": "disabled", "service_tier": "auto",
            "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
            "text": {"format": {"type": "text"}}, "previous_response_id": None, "parallel_tool_calls": True,
            "tool_choice": "auto",
        }  # fmt: skip
        response = await front.http.post("/v1/responses", json=ASKED | harmless)
        assert response.status_code == 200
        assert response.json()["metadata"] == {"a": "b"}

    serving_agents(tmp_path, work)


def test_an_error_inside_a_stream(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with front.http.stream("POST", "/v1/responses", json=ASKED | {"stream": True}) as response:
            lines = response.aiter_lines()
            while "output_item.added" not in await anext(lines):
                pass
            front.client.die("rank 0 was killed")
            rest = [line async for line in lines if line]
        assert rest[-2] == "event: error"
        assert '"code":"engine_dead"' in rest[-1]

    serving(tmp_path, work, TEXT, max_model_len=2000, hang_after=1)
