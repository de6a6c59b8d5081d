"""Requests are parsed beside the event loop: large ones in processes, which hold up nobody and leave nothing behind."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from splitrank.serving.http import parsing as parsing_module
from splitrank.serving.http.parsing import SMALL_BODY_BYTES, Parsing
from splitrank.serving.openai.dialects import RESPONSES_URL
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, TOKENIZE_URL
from splitrank.serving.openai.requests import DirectAnswer
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.text.text_engine import TextEngine
from tests.support.front_fakes import LIMIT_S, FakeClient, answer, make_info, make_tokenizer

WORDS = "some words of a prompt "
MESSAGES = [{"role": "user", "content": "<|im_end|> 🦊 " * 9000}]
SCHEMA = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}}
BEYOND_64_BITS = {"type": "function", "name": "f", "parameters": {"properties": {"a": {"maximum": 10**30}}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def with_parsing(folder: Path, work: Callable[[Parsing, OpenAIService], Awaitable[None]], **info: Any) -> None:
    async def scenario() -> None:
        tokenizer = make_tokenizer(folder)
        engine = TextEngine(FakeClient(answer(tokenizer, "x")), tokenizer, make_info(tokenizer, **info))
        parsing = Parsing("warning")
        try:
            await work(parsing, OpenAIService(engine))
        finally:
            await parsing.aclose()

    asyncio.run(asyncio.wait_for(scenario(), 6 * LIMIT_S))


def large(**fields: Any) -> bytes:
    return json.dumps({"prompt": "hi"} | fields).encode().ljust(SMALL_BODY_BYTES + 1)


def workers_of(parsing: Parsing) -> list[int]:
    return [worker.pid for worker in parsing.workers if worker.pid is not None]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# ------------------------------------------------------------------ the same answers


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        (COMPLETIONS_URL, {"prompt": [[5, 6], [7]], "n": 3, "seed": 4, "echo": True, "stop": ["a"]}),
        (COMPLETIONS_URL, {"prompt": WORDS * 4000, "logit_bias": {"5": 1}, "logprobs": 3}),
        (CHAT_URL, {"messages": MESSAGES, "enable_thinking": False}),
        (CHAT_URL, {"messages": MESSAGES, "tools": [TOOL], "parallel_tool_calls": False}),
        (RESPONSES_URL, {"input": MESSAGES, "metadata": {"a": "b"}}),
        (
            RESPONSES_URL,
            {"input": MESSAGES, "tools": [{"type": "function", "name": "f", "parameters": BEYOND_64_BITS}]},
        ),
    ],
    ids=["ids", "text", "chat", "tools", "response", "integer"],
)
def test_a_worker_parses_as_this_process_does(tmp_path: Path, url: str, fields: dict[str, Any]) -> None:
    async def work(parsing: Parsing, service: OpenAIService) -> None:
        body = json.dumps(fields).encode().ljust(SMALL_BODY_BYTES + 1)
        assert await parsing.parse(service, url, body) == service.parse(url, body)
        assert len(workers_of(parsing)) == 1

    with_parsing(tmp_path, work, max_model_len=100_000)


def test_a_worker_writes_the_json_of_a_direct_answer(tmp_path: Path) -> None:
    """A million tokens take as long to read and to write as all streams would wait."""

    async def work(parsing: Parsing, service: OpenAIService) -> None:
        body = json.dumps({"messages": MESSAGES}).encode().ljust(SMALL_BODY_BYTES + 1)
        answered, expected = await parsing.parse(service, TOKENIZE_URL, body), service.parse(TOKENIZE_URL, body)
        assert isinstance(answered, DirectAnswer)
        assert isinstance(expected, DirectAnswer)
        assert isinstance(answered.body, msgspec.Raw)
        assert json.loads(bytes(answered.body)) == expected.body

    with_parsing(tmp_path, work, max_model_len=200_000)


@pytest.mark.parametrize("pad", [0, SMALL_BODY_BYTES])
def test_refusals_come_back_whole(tmp_path: Path, pad: int) -> None:
    async def work(parsing: Parsing, service: OpenAIService) -> None:
        cases = [
            (b"{", 400, None, None),
            (b'{"prompt": "a", "temperature": 3}', 400, "temperature", None),
            (b'{"prompt": "a", "model": "gpt-4"}', 404, "model", "model_not_found"),
            (json.dumps({"prompt": "x " * 40_000}).encode(), 400, "prompt", "context_length_exceeded"),
        ]
        for body, status, param, code in cases:
            with pytest.raises(ApiError) as caught:
                await parsing.parse(service, COMPLETIONS_URL, body + b" " * pad)
            error = caught.value
            assert (error.status, error.param, error.code) == (status, param, code)
            assert error.type == "invalid_request_error"

    with_parsing(tmp_path, work)


# ------------------------------------------------------------------ nobody waits for large ones


def test_small_requests_do_not_queue_behind_large_ones(tmp_path: Path) -> None:
    """Both workers are stopped, so every large request hangs; small ones are answered all the same."""

    async def work(parsing: Parsing, service: OpenAIService) -> None:
        await asyncio.gather(*(parsing.parse(service, COMPLETIONS_URL, large()) for _ in range(2)))
        pids = workers_of(parsing)
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        hanging = [asyncio.create_task(parsing.parse(service, COMPLETIONS_URL, large())) for _ in range(5)]
        for _ in range(20):
            await parsing.parse(service, COMPLETIONS_URL, b'{"prompt": "hi"}')
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        # Their workers were given up with them, and the next request gets a new one.
        await parsing.parse(service, COMPLETIONS_URL, large())
        assert not set(workers_of(parsing)) & set(pids)

    with_parsing(tmp_path, work)


@pytest.mark.parametrize("size", [0, SMALL_BODY_BYTES], ids=["small", "large"])
def test_who_waits_too_long_leaves_the_queue(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(parsing: Parsing, service: OpenAIService) -> None:
        parsed: list[bytes] = []
        may_end = threading.Event()

        def slow(url: str, body: bytes) -> Any:
            parsed.append(body)
            assert may_end.wait(LIMIT_S)

        if size:
            await asyncio.gather(*(parsing.parse(service, COMPLETIONS_URL, large()) for _ in range(2)))
            for pid in workers_of(parsing):
                os.kill(pid, signal.SIGSTOP)
        else:
            monkeypatch.setattr(service, "parse", slow)
        monkeypatch.setattr(parsing_module, "TIMEOUT_S", 0.2)
        bodies = [b'{"prompt": "%d"}' % index + b" " * size for index in range(6)]
        try:
            tasks = [asyncio.create_task(parsing.parse(service, COMPLETIONS_URL, body)) for body in bodies]
            for task in tasks:
                with pytest.raises(ApiError) as caught:
                    await task
                assert (caught.value.status, caught.value.code) == (503, "prompt_timeout")
                assert "Retry-After" in caught.value.headers
        finally:
            may_end.set()
        assert len(parsed) <= 2  # the four that waited were never begun

    with_parsing(tmp_path, work)


# ------------------------------------------------------------------ a worker that dies


def test_a_worker_that_is_killed_costs_its_own_request_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(parsing: Parsing, service: OpenAIService) -> None:
        await parsing.parse(service, COMPLETIONS_URL, large())
        [pid] = workers_of(parsing)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ApiError, match="was killed by signal 9") as caught:
            await parsing.parse(service, COMPLETIONS_URL, large())
        assert (caught.value.status, caught.value.code) == (500, "parse_failed")
        assert f"parse worker {pid} was killed by signal 9" in caplog.text
        await parsing.parse(service, COMPLETIONS_URL, large())

    with_parsing(tmp_path, work)


def test_a_dead_worker_gets_no_other_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client hangs up while the reason for its death is sought."""
    exit_code, asked = parsing_module._exit_code, asyncio.Event()

    async def never(process: Any, limit_s: float) -> int | None:
        asked.set()
        await asyncio.Event().wait()
        return None

    async def work(parsing: Parsing, service: OpenAIService) -> None:
        await parsing.parse(service, COMPLETIONS_URL, large())
        [pid] = workers_of(parsing)
        os.kill(pid, signal.SIGKILL)
        monkeypatch.setattr(parsing_module, "_exit_code", never)
        task = asyncio.create_task(parsing.parse(service, COMPLETIONS_URL, large()))
        await asked.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        monkeypatch.setattr(parsing_module, "_exit_code", exit_code)
        await parsing.parse(service, COMPLETIONS_URL, large())

    with_parsing(tmp_path, work)


def test_no_worker_outlives_the_server(tmp_path: Path) -> None:
    pids: list[int] = []

    async def work(parsing: Parsing, service: OpenAIService) -> None:
        await asyncio.gather(*(parsing.parse(service, COMPLETIONS_URL, large()) for _ in range(2)))
        pids.extend(workers_of(parsing))
        hanging = asyncio.create_task(parsing.parse(service, COMPLETIONS_URL, large()))
        await asyncio.sleep(0)
        hanging.cancel()

    with_parsing(tmp_path, work)
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


def test_no_worker_starts_for_small_requests(tmp_path: Path) -> None:
    async def work(parsing: Parsing, service: OpenAIService) -> None:
        await parsing.parse(service, COMPLETIONS_URL, b'{"prompt": "hi"}')
        assert workers_of(parsing) == []

    with_parsing(tmp_path, work)
