"""The routes through a real server: the official client, raw sockets, and every error as an error object."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from splitrank.serving.http import parsing
from splitrank.serving.openai.formats import ChatChoice
from splitrank.serving.openai.parser import RequestParser
from splitrank.serving.protocol.messages import RequestOutput
from splitrank.serving.text.chat_template import ChatTemplate
from splitrank.serving.text.detokenizer import Detokenizer
from splitrank.serving.text.text_engine import TextEngine
from tests.support.front_fakes import LIMIT_S, FakeClient, Front, refuse
from tests.support.http_helpers import check_error, post_head, raw, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "enable_thinking": False}


@asynccontextmanager
async def openai_client(front: Front, api_key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{front.http.base_url}/v1", api_key=api_key, max_retries=0) as client:
        yield client


# ------------------------------------------------------------------ the official client


def test_openai_client(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with openai_client(front) as client:
            models = [model async for model in client.models.list()]
            assert [model.id for model in models] == ["tiny"]
            assert (await client.models.retrieve("tiny")).id == "tiny"
            asked = {"model": "tiny", "messages": CHAT["messages"], "reasoning_effort": "none"}
            chat = await client.chat.completions.create(**asked)
            assert chat.choices[0].message.content == "hello"
            stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello"
            assert chunks[-1].usage == chat.usage
            text = await client.completions.create(model="tiny", prompt="hi", max_tokens=2)
            assert (text.choices[0].text, text.choices[0].finish_reason) == ("hel", "length")

    serving(tmp_path, work)


TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
CALL = "<tool_call>\n<function=look>\n<parameter=at>\n it\n</parameter>\n</function>\n</tool_call>"


def test_openai_client_thinks_and_calls(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with openai_client(front) as client:
            asked: Any = {"model": "tiny", "messages": CHAT["messages"], "tools": [TOOL]}
            whole = (await client.chat.completions.create(**asked)).choices[0]
            async with client.chat.completions.stream(**asked) as stream:
                kinds = [event.type async for event in stream]
                joined = (await stream.get_final_completion()).choices[0]
            assert "tool_calls.function.arguments.done" in kinds
            for choice in (whole, joined):
                message: Any = choice.message
                assert (message.content, message.reasoning_content) == ("I look.", "a thought")
                assert choice.finish_reason == "tool_calls"
                [call] = message.tool_calls
                assert (call.function.name, call.function.arguments) == ("look", '{"at": " it"}')
                result = {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "nothing"}]}
                turn: Any = [*CHAT["messages"], message.model_dump(exclude_none=True), result]
                assert (
                    (await client.chat.completions.create(**asked | {"messages": turn})).choices[0].message.tool_calls
                )

    serving(tmp_path, work, "a thought\n</think>\n\nI look.\n\n" + CALL, max_model_len=1000)


def test_openai_client_sees_its_exceptions(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async with openai_client(front) as client:
            messages: Any = CHAT["messages"]
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="gpt-4", messages=messages)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("gpt-4")
            with pytest.raises(openai.BadRequestError) as too_long:
                await client.completions.create(model="tiny", prompt=[1] * 200, stream=True)
            assert too_long.value.code == "context_length_exceeded"

    serving(tmp_path, work)


def test_stream_headers(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        response = await front.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.text.endswith("data: [DONE]\n\n")

    serving(tmp_path, work)


# ------------------------------------------------------------------ errors are error objects


def test_wrong_paths_and_methods(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for path in ("/page", "/v1", "/v1/models/", "/v1/chat/completions/", "/nothing?x=1"):
            check_error(await front.http.get(path), 404)
        wrong_method = await front.http.get("/v1/chat/completions")
        check_error(wrong_method, 405, "method_not_allowed")
        assert wrong_method.headers["allow"] == "POST"
        check_error(await front.http.delete("/v1/models"), 405)

    serving(tmp_path, work)


def test_bad_bodies(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        headers = {"content-type": "application/json; charset=utf-8"}
        check_error(await front.http.post("/v1/completions", content=b"{", headers=headers), 400)
        check_error(await front.http.post("/v1/completions", content=b'{"prompt": 1}', headers=headers), 400)
        for headers in ({"content-type": "text/plain"}, {}, {"content-type": "application/x-www-form-urlencoded"}):
            check_error(await front.http.post("/v1/completions", content=b"{}", headers=headers), 415)
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        check_error(await front.http.post("/v1/completions", content=b"{}", headers=headers), 415)

    serving(tmp_path, work)


def test_large_bodies(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async def parts(size: int) -> AsyncIterator[bytes]:
            for _ in range(size // 1000):
                yield b" " * 1000

        headers = {"content-type": "application/json"}
        post = front.http.post
        check_error(await post("/v1/completions", content=b" " * 20_001, headers=headers), 413)
        check_error(await post("/v1/completions", content=parts(30_000), headers=headers), 413)  # no length declared
        reader, writer = await raw(front, post_head(10**12))
        assert (await asyncio.wait_for(reader.readline(), LIMIT_S)).startswith(b"HTTP/1.1 413")
        writer.close()
        padded = json.dumps(CHAT).encode().ljust(20_000)
        assert (await post("/v1/chat/completions", content=padded, headers=headers)).status_code == 200

    serving(tmp_path, work, max_body_bytes=20_000)


def test_slow_body(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        reader, writer = await raw(front, post_head(100), b'{"messages"')
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)  # to the end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"request_timeout"' in answer
        writer.close()

    serving(tmp_path, work, body_timeout_s=0.2)


def test_a_crash_shows_nothing_of_our_insides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(front: Front) -> None:
        def crash(prompt: list[int], params: object) -> list[Any]:
            raise RuntimeError("secret /path")

        front.client.script = crash
        response = await front.http.post("/v1/chat/completions", json=CHAT)
        check_error(response, 500, "internal_error")
        assert "secret" not in response.text
        response = await front.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        check_error(response, 500, "internal_error")
        assert "secret" in caplog.text

    serving(tmp_path, work)


def crash_of_one(*_: object, **__: object) -> Any:
    raise KeyError("secret /path")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RequestParser, "parse"),
        (ChatTemplate, "render"),
        (Detokenizer, "push"),
        (Detokenizer, "finish"),
        (ChatChoice, "parts"),
        (ChatChoice, "collect"),
        (ChatChoice, "ending"),
        (ChatChoice, "whole"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bug_of_ours_ends_its_own_request(
    tmp_path: Path, owner: type, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(front: Front) -> None:
        async with front.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as other:
            await asyncio.wait_for(front.client.hanging.wait(), LIMIT_S)
            front.client.hang_after = None
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, crash_of_one)
                answers = [
                    await front.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
                    for stream in (False, True)
                ]
            front.client.go_on.set()
            assert (await other.aread()).endswith(b"data: [DONE]\n\n")
            assert b"error" not in other.content
        crashed = [answer for answer in answers if "internal_error" in answer.text]
        assert len(crashed) == (1 if owner is ChatChoice else 2)
        for answer in crashed:
            assert "secret" not in answer.text
            if answer.status_code == 200:  # the stream had begun
                assert answer.text.endswith("}\n\ndata: [DONE]\n\n")
            else:
                check_error(answer, 500, "internal_error")
        assert caplog.text.count("KeyError: 'secret /path'") == len(crashed)
        assert front.client.num_aborted <= len(crashed)

    serving(tmp_path, work, hang_after=2)


def test_a_full_queue_is_503_also_for_a_stream(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        front.client.script = refuse("queue_full", "5 requests are waiting")
        for stream in (False, True):
            response = await front.http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
            check_error(response, 503, "queue_full")
            assert response.headers["retry-after"] == "1"

    serving(tmp_path, work)


@pytest.mark.parametrize("code", ["invalid_numbers", "sampling_failed"])
def test_a_request_that_fails_alone_is_500_and_an_event_of_a_stream(tmp_path: Path, code: str) -> None:
    reason = "the model's logits for output token 1 hold NaN"

    async def work(front: Front) -> None:
        failed = refuse(code, reason)
        front.client.script = lambda prompt, params: [RequestOutput("0", [70]), *failed(prompt, params)]
        response = await front.http.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 500
        assert response.json()["error"] == {"message": reason, "type": "server_error", "param": None, "code": code}
        assert "retry-after" not in response.headers
        response = await front.http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert response.status_code == 200
        *_, error, done, end = response.text.split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["message"] == reason
        assert (done, end) == ("data: [DONE]", "")

    serving(tmp_path, work)


# ------------------------------------------------------------------ API key


def test_api_key(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        get = front.http.get
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic key"},
            {"authorization": "key"},
        ):
            response = await get("/v1/models", headers=headers)
            check_error(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        check_error(await get("/metrics"), 401)
        check_error(await get("/nothing"), 401)
        assert (await get("/health")).status_code == (await get("/ready")).status_code == 200
        async with openai_client(front, "key") as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]

    serving(tmp_path, work, api_key="key")


# ------------------------------------------------------------------ hanging up, waiting


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hang_after", [0, 1])
def test_hanging_up_aborts(tmp_path: Path, stream: bool, hang_after: int) -> None:
    async def work(front: Front) -> None:
        body = json.dumps(CHAT | {"stream": stream, "n": 2}).encode()
        _, writer = await raw(front, post_head(len(body)), body)
        await asyncio.wait_for(front.client.hanging.wait(), LIMIT_S)
        writer.close()
        await asyncio.wait_for(front.client.aborted.wait(), LIMIT_S)
        response = await front.http.get("/metrics")
        assert 'vllm:request_success_total{finished_reason="abort",model_name="tiny"} 2.0' in response.text
        assert front.client.num_aborted == 2

    serving(tmp_path, work, hang_after=hang_after)


@pytest.mark.parametrize("hang_after", [0, 1])
def test_keep_alive_comments(tmp_path: Path, hang_after: int) -> None:
    async def work(front: Front) -> None:
        async with front.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            lines = response.aiter_lines()
            while await anext(lines) != ": keep-alive":
                pass
            front.client.die("rank 0 was killed")
            rest = [line async for line in lines if line.startswith("data: ")]
        assert json.loads(rest[0][6:])["error"]["code"] == "engine_dead"
        assert rest[1:] == ["data: [DONE]"]

    serving(tmp_path, work, hang_after=hang_after, keep_alive_s=0.05)


def test_engines_are_closed(tmp_path: Path) -> None:
    engines: list[TextEngine] = []

    async def work(front: Front) -> None:
        engines.append(front.engine)

    serving(tmp_path, work)
    assert isinstance(engines[0].client, FakeClient)
    assert engines[0].client.closed


def test_a_prompt_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(front: Front) -> None:
        may_end = threading.Event()
        monkeypatch.setattr(front.engine.tokenizer, "encode", lambda *_, **__: [1] if may_end.wait(LIMIT_S) else [2])
        try:
            check_error(await front.http.post("/v1/chat/completions", json=CHAT), 503, "prompt_timeout")
            assert (await front.http.get("/health")).status_code == 200
        finally:
            may_end.set()

    monkeypatch.setattr(parsing, "TIMEOUT_S", 0.1)
    serving(tmp_path, work)
