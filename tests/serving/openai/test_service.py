"""Answers and streams as clients read them, over an engine that follows a script."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from splitrank.serving.launch.engine_client import EngineDeadError
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.formats import ChatChoice, Collected, CompletionChoice
from splitrank.serving.openai.logprobs import TokenNames
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL
from splitrank.serving.openai.requests import ParsedRequest, Prompt
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.protocol.messages import RequestOutput, TokenLogprobs
from splitrank.serving.text.text_engine import TextEngine, TextOutput
from tests.support.front_fakes import FakeClient, make_tokenizer, refuse
from tests.support.service_helpers import complete, stream, with_engine

THINKING: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
CHAT: dict[str, Any] = THINKING | {"enable_thinking": False}
PROMPT: dict[str, Any] = {"prompt": "hi"}


def test_chat_body(tmp_path: Path) -> None:
    body = complete(tmp_path, CHAT_URL, CHAT)
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert body["system_fingerprint"] == "splitrank-test"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hello",
                "reasoning_content": None,
                "reasoning": None,
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    usage = body["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["completion_tokens"] == 5  # h el l o <|im_end|>
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_completion_body(tmp_path: Path) -> None:
    body = complete(tmp_path, COMPLETIONS_URL, PROMPT | {"max_tokens": 2, "echo": True})
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "hihel", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]


def test_several_choices_in_order(tmp_path: Path) -> None:
    body = complete(tmp_path, COMPLETIONS_URL, {"prompt": ["hi", "hoho"], "n": 2, "echo": True})
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["hihello", "hihello", "hohohello", "hohohello"]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 20


def test_token_ids(tmp_path: Path) -> None:
    choice = complete(tmp_path, CHAT_URL, CHAT | {"return_token_ids": True, "max_tokens": 2})["choices"][0]
    chunks = stream(tmp_path, CHAT_URL, CHAT | {"return_token_ids": True, "max_tokens": 2})
    streamed = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids", [])]
    assert len(choice["token_ids"]) == 2
    assert streamed == choice["token_ids"]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == choice["prompt_token_ids"]


def test_chat_stream(tmp_path: Path) -> None:
    chunks = stream(tmp_path, CHAT_URL, CHAT | {"stream_options": {"include_usage": True}})
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *parts, usage = chunks
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert all(part["usage"] is None for part in parts)
    choices = [part["choices"][0] for part in parts]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"].get("content") for choice in choices[1:-1]] == ["h", "el", "l", "o"]
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])


def test_no_usage_unless_asked(tmp_path: Path) -> None:
    assert all("usage" not in chunk for chunk in stream(tmp_path, CHAT_URL, CHAT))


def test_completion_stream_equals_its_body(tmp_path: Path) -> None:
    request = {"prompt": ["hi", "ho"], "n": 2, "echo": True, "max_tokens": 60}
    text = "naïve 🦊 text"
    chunks = stream(tmp_path, COMPLETIONS_URL, request, text)
    texts = ["", "", "", ""]
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        for choice in chunk["choices"]:
            assert "\ufffd" not in choice["text"]
            texts[choice["index"]] += choice["text"]
    body = complete(tmp_path, COMPLETIONS_URL, request, text)
    assert texts == [choice["text"] for choice in body["choices"]] == [p + text for p in ("hi", "hi", "ho", "ho")]


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_ends_and_aborts(tmp_path: Path, include: bool) -> None:
    async def work(engine: TextEngine) -> tuple[dict[str, Any], FakeClient]:
        service = OpenAIService(engine)
        body = CHAT | {"stop": ["ignored", "lo w"], "include_stop_str_in_output": include}
        assert isinstance(engine.client, FakeClient)
        return await service.complete(service.parse(CHAT_URL, json.dumps(body).encode())), engine.client

    body, client = with_engine(tmp_path, work, "hello world and more")
    choice = body["choices"][0]
    assert choice["message"]["content"] == ("hello w" if include else "hel")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "lo w")
    assert client.num_aborted == 1


def test_a_stop_string_in_the_last_token_wins_over_length(tmp_path: Path) -> None:
    choice = complete(tmp_path, COMPLETIONS_URL, PROMPT | {"stop": "o", "max_tokens": 4})["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("hell", "stop", "o")


def test_stop_token_id_is_told_and_not_shown(tmp_path: Path) -> None:
    async def work(engine: TextEngine) -> list[dict[str, Any]]:
        comma = engine.tokenizer.encode(",")[0]
        engine.client = FakeClient(lambda prompt, params: [RequestOutput("0", [5, comma], None, "stop", comma)])
        service = OpenAIService(engine)
        bodies: list[dict[str, Any]] = [
            {"stop_token_ids": [comma]},
            {"stop_token_ids": [comma], "include_stop_str_in_output": True},
        ]
        return [await service.complete(service.parse(COMPLETIONS_URL, json.dumps(PROMPT | b).encode())) for b in bodies]

    hidden, shown = (body["choices"][0] for body in with_engine(tmp_path, work))
    assert shown["text"] == hidden["text"] + ","
    assert hidden["stop_reason"] == shown["stop_reason"] is not None


def test_chat_logprobs(tmp_path: Path) -> None:
    request = CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    content = complete(tmp_path, CHAT_URL, request, "é!")["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], [ord("!")], list(b"<|im_end|>")]
    assert [entry["token"] for entry in content] == ["bytes:\\xc3", "bytes:\\xa9", "!", "<|im_end|>"]
    assert [len(entry["top_logprobs"]) for entry in content] == [2, 2, 2, 2]
    assert content[2]["top_logprobs"][0] == {"token": "!", "logprob": -0.5, "bytes": [33]}
    streamed = [
        entry
        for chunk in stream(tmp_path, CHAT_URL, request, "é!")
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content


def test_completion_logprobs(tmp_path: Path) -> None:
    request = PROMPT | {"logprobs": 1, "max_tokens": 10}
    logprobs = complete(tmp_path, COMPLETIONS_URL, request, "é! ab")["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!", " ", "ab", "<|im_end|>"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 5]
    assert logprobs["token_logprobs"] == [-0.5] * 6
    assert logprobs["top_logprobs"][2] == {"!": -0.5}
    joined: dict[str, list[Any]] = {name: [] for name in logprobs}
    for chunk in stream(tmp_path, COMPLETIONS_URL, request, "é! ab"):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == logprobs


def test_a_long_answer_is_no_work_at_its_end(tmp_path: Path) -> None:
    """Log probabilities are formatted as they come, once: nothing is copied or looked up again for each token."""
    tokenizer = make_tokenizer(tmp_path)
    output = TextOutput("a", [5], [TokenLogprobs(-0.5, [5, 6], [-0.5, -1.0])])
    for kind in (ChatChoice, CompletionChoice):
        request = ParsedRequest("chat", (), ())
        choice, answer = kind(TokenNames(tokenizer), Prompt([1], ""), request), Collected()
        for _ in range(3):
            choice.collect(output)
            answer.add(output)
        kept = answer.logprobs
        answer.add(output)
        assert kept is answer.logprobs
        assert answer.text == "aaaa"
        tokenizer.token_bytes = None  # type: ignore[method-assign, assignment]
        logprobs = choice.whole(answer)["logprobs"]
        assert all(isinstance(value, msgspec.Raw) for value in logprobs.values() if value is not None)
        del tokenizer.token_bytes


@pytest.mark.parametrize(("code", "status"), [("queue_full", 503), ("engine_dead", 503), ("invalid_request", 400)])
@pytest.mark.parametrize("n", [1, 3])
def test_a_refusal_of_the_engine_is_an_api_error(tmp_path: Path, code: str, status: int, n: int) -> None:
    async def work(engine: TextEngine) -> None:
        engine.client = FakeClient(refuse(code, "the numbers"))
        service = OpenAIService(engine)
        request = service.parse(CHAT_URL, json.dumps(CHAT | {"n": n}).encode())
        for answer in (service.complete(request), anext(service.stream_events(request))):
            with pytest.raises(ApiError, match="the numbers") as caught:
                await answer
            assert caught.value.status == status
            assert ("Retry-After" in caught.value.headers) == (status == 503)

    with_engine(tmp_path, work)


@pytest.mark.parametrize("n", [1, 3])
def test_a_dead_engine_is_not_an_api_error(tmp_path: Path, n: int) -> None:
    async def work(engine: TextEngine) -> None:
        assert isinstance(engine.client, FakeClient)
        service = OpenAIService(engine)
        task = asyncio.create_task(service.complete(service.parse(CHAT_URL, json.dumps(CHAT | {"n": n}).encode())))
        await engine.client.hanging.wait()
        engine.client.die("rank 1 was killed")
        with pytest.raises(EngineDeadError, match="rank 1 was killed"):
            await task

    with_engine(tmp_path, work, hang_after=1)


@pytest.mark.parametrize("n", [1, 3])
def test_cancelling_aborts_every_choice(tmp_path: Path, n: int) -> None:
    async def work(engine: TextEngine) -> None:
        client = engine.client
        assert isinstance(client, FakeClient)
        service = OpenAIService(engine)
        request = service.parse(CHAT_URL, json.dumps(CHAT | {"n": n}).encode())
        task = asyncio.create_task(service.complete(request))
        await client.hanging.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert client.num_aborted == len(client.requests) == n

        async with aclosing(service.stream_events(request)) as events:
            await anext(events)
        assert client.num_aborted == len(client.requests) == 2 * n

    with_engine(tmp_path, work, hang_after=1)
