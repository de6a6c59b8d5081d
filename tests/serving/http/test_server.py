"""The server's life: bind, load, serve, drain, die. Signals are real, and sent to this process."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from splitrank.serving.http.server import serve
from splitrank.serving.launch.engine_client import EngineStartError
from splitrank.serving.options.config import EngineConfig, ServeConfig
from splitrank.serving.text.text_engine import TextEngine
from tests.support.front_fakes import LIMIT_S, Front, free_port, make_engine, running, wait_for_status

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def serving(folder: Path, work: Callable[[Front], Awaitable[None]], **options: Any) -> None:
    hang_after = options.pop("hang_after", None)

    async def scenario() -> None:
        async with running(make_engine(folder, hang_after=hang_after), **options) as front:
            await work(front)

    asyncio.run(asyncio.wait_for(scenario(), 3 * LIMIT_S))


def ask(front: Front, stream: bool = False) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(front.http.post("/v1/chat/completions", json=CHAT | {"stream": stream}))


async def ask_hanging(front: Front, stream: bool = False) -> "asyncio.Task[httpx.Response]":
    """A request that is open in the engine and gets no more outputs."""
    front.client.hanging.clear()
    task = ask(front, stream)
    await front.client.hanging.wait()
    return task


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def never_started(config: EngineConfig, name: str) -> TextEngine:
    raise AssertionError("the model was loaded")


def test_a_port_in_use_is_said_before_anything_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            asyncio.run(serve(ServeConfig(port=port), never_started))


def test_an_unknown_host_is_said() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 203\.0\.113\.1:0"):
        asyncio.run(serve(ServeConfig(host="203.0.113.1", port=0), never_started))


def test_address_and_reports_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(front: Front) -> None:
        out, err = capsys.readouterr()
        assert out == f"serving tiny on http://127.0.0.1:{front.port}\n"
        assert "rank 0: everything" in err
        assert "context 100 tokens" in err

    serving(tmp_path, work)


def test_while_loading_requests_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        loaded = asyncio.Event()
        async with running(make_engine(tmp_path), loaded) as front:
            assert (await front.http.get("/health")).json() == {"status": "ok", "phase": "loading"}
            for response in (await front.http.get("/ready"), await front.http.get("/v1/models"), await ask(front)):
                assert code_of(response) == (503, "engine_loading")
                assert int(response.headers["retry-after"]) > 0
            loaded.set()
            await wait_for_status(front.http, "/ready", 200, front.task)
            assert (await ask(front)).status_code == 200

    asyncio.run(asyncio.wait_for(scenario(), 3 * LIMIT_S))


def test_a_signal_while_loading_ends_the_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(make_engine(tmp_path), loaded=asyncio.Event()) as front:
            os.kill(os.getpid(), signal.SIGTERM)
            assert await front.exit_code() == 0

    asyncio.run(asyncio.wait_for(scenario(), 3 * LIMIT_S))


@pytest.mark.parametrize("error", [EngineStartError("rank 1 failed in load"), ValueError("no tokenizer")])
def test_a_failed_start_is_raised_and_the_port_is_free_again(error: Exception) -> None:
    async def failing(config: EngineConfig, name: str) -> TextEngine:
        raise error

    port = free_port()
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(serve(ServeConfig(port=port), failing))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_draining_lets_open_requests_finish(tmp_path: Path, number: signal.Signals) -> None:
    async def work(front: Front) -> None:
        open_request = await ask_hanging(front, stream=True)
        os.kill(os.getpid(), number)
        await wait_for_status(front.http, "/ready", 503, front.task)
        assert code_of(await front.http.get("/ready")) == (503, "engine_draining")
        refused = await ask(front)
        assert code_of(refused) == (503, "engine_draining")
        assert refused.headers["retry-after"] == "1"
        assert (await front.http.get("/health")).status_code == 200
        assert not front.client.closed
        front.client.go_on.set()
        assert (await open_request).text.endswith("data: [DONE]\n\n")
        assert "engine" not in (await open_request).text
        assert await front.exit_code() == 0
        assert front.client.closed

    serving(tmp_path, work, hang_after=1)


def test_draining_has_a_limit(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        whole, stream = await ask_hanging(front), await ask_hanging(front, stream=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert code_of(await whole) == (503, "engine_draining")
        lines = [line for line in (await stream).text.splitlines() if line]
        assert '"code":"engine_draining"' in lines[-2]
        assert lines[-1] == "data: [DONE]"
        assert await front.exit_code() == 0
        assert front.client.num_aborted == 2

    serving(tmp_path, work, hang_after=1, drain_timeout_s=0.2)


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        open_request = await ask_hanging(front)
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_for_status(front.http, "/ready", 503, front.task)
        os.kill(os.getpid(), signal.SIGINT)
        assert code_of(await open_request) == (503, "engine_draining")
        assert await front.exit_code() == 0

    serving(tmp_path, work, hang_after=1, drain_timeout_s=3600.0)


@pytest.mark.parametrize("draining", [False, True])
def test_a_dead_engine_ends_open_requests_and_the_server(tmp_path: Path, draining: bool) -> None:
    async def work(front: Front) -> None:
        whole, stream = await ask_hanging(front), await ask_hanging(front, stream=True)
        if draining:
            os.kill(os.getpid(), signal.SIGTERM)
            await wait_for_status(front.http, "/ready", 503, front.task)
        front.client.die("rank 1 (stage 1, tp 0) was killed by signal 9")
        response = await whole
        assert code_of(response) == (503, "engine_dead")
        assert "rank 1 (stage 1, tp 0) was killed by signal 9" in response.text
        assert "was killed by signal 9" in (await stream).text
        assert await front.exit_code() == 1
        assert front.client.closed

    serving(tmp_path, work, hang_after=1)


def test_health_and_ready_of_a_dead_engine(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        slow = await asyncio.open_connection("127.0.0.1", front.port)  # keeps the server from leaving at once
        slow[1].write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        await slow[1].drain()
        close = front.client.close
        may_close = asyncio.Event()

        async def close_later() -> None:
            await may_close.wait()
            await close()

        front.client.close = close_later  # type: ignore[method-assign]
        front.client.die("the reason")
        await wait_for_status(front.http, "/ready", 503, front.task)
        for path in ("/ready", "/health"):
            response = await front.http.get(path)
            assert code_of(response) == (503, "engine_dead")
            assert "the reason" in response.text
        may_close.set()
        assert await front.exit_code() == 1
        slow[1].close()

    serving(tmp_path, work)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        assert (await ask(front)).status_code == 200

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    num_threads = threading.active_count()
    serving(tmp_path, work)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    deadline = time.monotonic() + LIMIT_S
    while threading.active_count() > num_threads:
        assert time.monotonic() < deadline, f"left running: {threading.enumerate()}"
        time.sleep(0.01)
