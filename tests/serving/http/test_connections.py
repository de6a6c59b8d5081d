"""Connections: how long they stay, what closes them, and what one of them can cost the others."""

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from splitrank.serving.http import bodies, protocol
from splitrank.serving.http.connection_limit import MOST_DESCRIPTORS, NUM_RESERVED, connection_limit
from splitrank.serving.http.listener import Listener, bind
from splitrank.serving.http.parsing import SMALL_BODY_BYTES, ParseWorker
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.options.config import ServeConfig
from tests.support.front_fakes import LIMIT_S, Front, wait_for_status
from tests.support.http_helpers import check_error, post_head, raw, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
OK = b"HTTP/1.1 200 OK"
HEALTH = "GET /health HTTP/1.1\nhost: x\n"


async def answer_on(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Status line and body of the next answer on a raw connection."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    return head.split(b"\r\n")[0], await asyncio.wait_for(reader.readexactly(int(length)), LIMIT_S)


def parse_workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("parse_worker" in word for word in child.cmdline())]


# ------------------------------------------------------------------ how long they stay


def test_idle_connections_stay_as_long_as_the_option_says(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        reader, writer = await raw(front, HEALTH)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
        assert b"keep-alive: timeout=1\r\n" in head.lower()
        await asyncio.wait_for(reader.read(), LIMIT_S)  # to the end
        writer.close()

    assert ServeConfig().keep_alive_timeout_s == 75
    serving(tmp_path, work, keep_alive_timeout_s=1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_keep_alive_that_is_none(value: float) -> None:
    with pytest.raises(ValueError, match="keep_alive_timeout_s must be "):
        ServeConfig(keep_alive_timeout_s=value)


@pytest.mark.parametrize(
    ("sent", "requests_before"), [("", 0), ("GET /hea", 0), ("GET /hea", 1), (HEALTH + "x-slow: ", 0), (HEALTH, 1)]
)
def test_a_head_that_does_not_end_is_not_waited_for(
    tmp_path: Path, sent: str, requests_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(front: Front) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        for _ in range(requests_before):
            writer.write(HEALTH.replace("\n", "\r\n").encode() + b"\r\n")
            assert await answer_on(reader) == (OK, b'{"status":"ok","phase":"ready"}')
        writer.write(sent.replace("\n", "\r\n").encode())
        assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
        writer.close()

    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    serving(tmp_path, work)


def test_a_long_answer_is_no_late_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(front: Front) -> None:
        body = json.dumps(CHAT).encode()
        reader, writer = await raw(front, post_head(len(body)), body)
        await asyncio.wait_for(front.client.hanging.wait(), LIMIT_S)
        late = await asyncio.open_connection("127.0.0.1", front.port)
        assert await asyncio.wait_for(late[0].read(), LIMIT_S) == b""  # the limit has passed
        late[1].close()
        front.client.go_on.set()
        status, _ = await answer_on(reader)
        assert status == OK
        writer.close()

    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    serving(tmp_path, work, hang_after=1)


def small_receiver(front: Front) -> socket.socket:
    """A connection whose client's kernel takes little that the client has not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", front.port))
    connection.setblocking(False)
    return connection


async def read_all(connection: socket.socket) -> None:
    while await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 2**20), LIMIT_S):
        pass


def test_a_client_that_reads_nothing_is_dropped_and_a_slow_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    num_answers = 60  # of 200 KB: more than kernels keep for a connection
    requests = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * num_answers
    caplog.set_level(logging.INFO, logger=protocol.__name__)

    async def work(front: Front) -> None:
        loop = asyncio.get_running_loop()
        with small_receiver(front) as deaf:
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(requests)
            await loop.sock_sendall(deaf, requests)
            for _ in range(num_answers):
                assert (await answer_on(reader))[0] == OK
            writer.close()
            async with asyncio.timeout(LIMIT_S):
                while "has taken nothing of its answer for 0.5 s" not in caplog.text:  # noqa: ASYNC110 - its log
                    await asyncio.sleep(0.01)
            with pytest.raises(ConnectionResetError):
                await read_all(deaf)
        assert caplog.text.count("has taken nothing") == 1

    serving(tmp_path, work, send_timeout_s=0.5)


def test_beyond_their_number_only_probes_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(front: Front) -> None:  # whose own client holds the one connection
        reader, writer = await raw(front, HEALTH)
        assert (await answer_on(reader))[0] == OK
        cut, cut_writer = await raw(front, HEALTH)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer_on(cut)
        cut_writer.close()
        writer.write(HEALTH.replace("\n", "\r\n").replace("/health", "/version").encode() + b"\r\n")
        refused = (await asyncio.wait_for(reader.read(), LIMIT_S)).lower()  # to the end
        assert refused.startswith(b"http/1.1 503")
        assert b"\r\nretry-after: 1\r\n" in refused
        assert b'"code":"too_many_connections"' in refused
        writer.close()
        assert (await front.http.get("/version")).status_code == 200

    monkeypatch.setattr(protocol, "NUM_REFUSED_AT_ONCE", 1)
    serving(tmp_path, work, max_connections=1)


@pytest.mark.parametrize(
    ("limits", "wanted", "possible"),
    [
        ((1024, 4096), 0, 4096 - NUM_RESERVED),
        ((1024, resource.RLIM_INFINITY), 0, MOST_DESCRIPTORS - NUM_RESERVED),
        ((1024, 4096), 500, 500),
        ((256, 256), 0, 256 - NUM_RESERVED),
    ],
)
def test_as_many_connections_as_descriptors_allow(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: int, possible: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, raised: None)
    assert connection_limit(wanted) == possible


def test_too_few_descriptors_are_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (300, 300))
    with pytest.raises(
        ValueError, match=f"1000 .* need {1000 + NUM_RESERVED} .*, but the limit of this process is 300"
    ):
        connection_limit(1000)


def test_without_a_descriptor_a_client_is_turned_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept

    def without_descriptors(self: Listener) -> Any:
        if self._spare >= 0:  # the last one
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname(), timeout=LIMIT_S) as client:
            monkeypatch.setattr(socket.socket, "accept", without_descriptors)
            with pytest.raises(BlockingIOError):  # for asyncio: nothing to do
                listener.accept()
            assert client.recv(1) == b""
        monkeypatch.undo()
        with socket.create_connection(listener.getsockname(), timeout=LIMIT_S):
            listener.accept()[0].close()


# ------------------------------------------------------------------ what closes them


def test_a_crash_closes_no_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(front: Front) -> None:
        def crash(prompt: list[int], params: object) -> list[Any]:
            raise RuntimeError("a bug of ours")

        front.client.script = crash
        body = json.dumps(CHAT).encode()
        reader, writer = await raw(front, post_head(len(body)), body)
        status, answer = await answer_on(reader)
        assert (status, json.loads(answer)["error"]["code"]) == (
            b"HTTP/1.1 500 Internal Server Error",
            "internal_error",
        )
        writer.write(HEALTH.replace("\n", "\r\n").encode() + b"\r\n")
        assert (await answer_on(reader))[0] == OK
        writer.close()
        assert "a bug of ours" in caplog.text
        assert "POST /v1/chat/completions failed" in caplog.text

    serving(tmp_path, work)


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (post_head(10**12), b"", 413),
        (post_head(100), b"{", 408),
    ],
)
def test_an_answer_before_the_end_of_the_body_says_that_it_closes(
    tmp_path: Path, head: str, body: bytes, status: int
) -> None:
    async def work(front: Front) -> None:
        reader, writer = await raw(front, head, body)
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert b"\r\nconnection: close\r\n" in answer.lower()
        writer.close()

    serving(tmp_path, work, body_timeout_s=0.2)


def test_a_client_that_writes_all_before_it_reads_gets_its_413(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        size = 20 * 2**20
        reader, writer = await raw(front, post_head(size), b" " * size)
        status, _ = await answer_on(reader)
        assert status.startswith(b"HTTP/1.1 413")
        writer.write(HEALTH.replace("\n", "\r\n").encode() + b"\r\n")
        assert (await answer_on(reader))[0] == OK
        writer.close()

    serving(tmp_path, work, max_body_bytes=1000)


# ------------------------------------------------------------------ what one can cost the others


def test_the_limit_of_a_body_follows_from_the_context() -> None:
    assert bodies.body_limit(0, 8192) == bodies.body_limit(0, 131072) == 4 * 2**20
    assert bodies.body_limit(0, 262144) == 8 * 2**20
    assert bodies.body_limit(1000, 262144) == 1000


def test_large_bodies_that_do_not_end_keep_no_small_one_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, arrived = 2 * SMALL_BODY_BYTES, dict[int, int]()
    add = bodies._Body.add

    def counted(self: bodies._Body, part: bytes) -> None:
        add(self, part)
        arrived[id(self)] = self.num_bytes

    async def work(front: Front) -> None:
        body = json.dumps(CHAT).encode().ljust(size)
        clients = [await raw(front, post_head(size), body[:-1]) for _ in range(bodies.LARGE_BODIES + 1)]
        async with asyncio.timeout(LIMIT_S):
            while sum(arrived.values()) < len(clients) * (size - 1):  # noqa: ASYNC110 - in the server's own code
                await asyncio.sleep(0.01)
        assert (await front.http.post("/v1/chat/completions", json=CHAT)).status_code == 200
        for _, writer in clients:
            writer.write(body[-1:])
        answers = [await answer_on(reader) for reader, _ in clients]
        refused = [answer for status, answer in answers if status != OK]
        assert [b'"code":"too_many_large_requests"' in answer for answer in refused] == [True]
        for reader, writer in clients:  # the places are free again, and every connection goes on
            writer.write(post_head(size).replace("\n", "\r\n").encode() + b"\r\n" + body)
            assert (await answer_on(reader))[0] == OK
            writer.close()

    monkeypatch.setattr(bodies._Body, "add", counted)
    serving(tmp_path, work, max_body_bytes=size)


@pytest.fixture
def num_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every request that reaches a parse worker."""
    asked: list[int] = []
    ask = ParseWorker.ask

    async def counted(self: ParseWorker, service: OpenAIService, url: str, body: bytes) -> Any:
        asked.append(len(body))
        return await ask(self, service, url, body)

    monkeypatch.setattr(ParseWorker, "ask", counted)
    return asked


async def until_asked(num_asked: list[int], count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while len(num_asked) < count:  # noqa: ASYNC110 - the event is in the server's own code
            await asyncio.sleep(0.01)


def large_chat() -> bytes:
    return json.dumps(CHAT).encode().ljust(SMALL_BODY_BYTES + 1)


async def stop_the_worker(front: Front) -> psutil.Process:
    """From now on, large requests are not parsed."""
    headers = {"content-type": "application/json"}
    response = await front.http.post("/v1/chat/completions", content=large_chat(), headers=headers)
    assert response.status_code == 200
    [worker] = parse_workers()
    worker.suspend()
    return worker


def test_a_second_signal_waits_for_no_large_prompt(tmp_path: Path, num_asked: list[int]) -> None:
    async def work(front: Front) -> None:
        worker = await stop_the_worker(front)
        reader, writer = await raw(front, post_head(len(large_chat())), large_chat())
        await until_asked(num_asked, 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_for_status(front.http, "/ready", 503, front.task)
        os.kill(os.getpid(), signal.SIGTERM)
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)
        assert answer.startswith(b"HTTP/1.1 503")
        assert await front.exit_code() == 0
        assert not worker.is_running()
        writer.close()

    serving(tmp_path, work, drain_timeout_s=3600.0)


def test_hanging_up_ends_the_parsing(tmp_path: Path, num_asked: list[int]) -> None:
    async def work(front: Front) -> None:
        worker = await stop_the_worker(front)
        _, writer = await raw(front, post_head(len(large_chat())), large_chat())
        await until_asked(num_asked, 2)
        writer.close()
        await asyncio.to_thread(psutil.wait_procs, [worker], LIMIT_S)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

    serving(tmp_path, work)


def test_a_proxy_may_write_the_whole_address(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for path in ("/v1/models", "/v1/models/tiny"):
            reader, writer = await raw(front, f"GET http://tiny.example:80{path}?a=b HTTP/1.1\nhost: tiny.example\n")
            status, body = await answer_on(reader)
            assert (status, b'"tiny"' in body) == (OK, True)
            writer.close()
        for target, known in (("http://tiny.example", True), ("http://tiny.example/http://x/v1/models", False)):
            reader, writer = await raw(front, f"GET {target} HTTP/1.1\nhost: tiny.example\n")
            assert (await answer_on(reader))[0] == (OK if known else b"HTTP/1.1 404 Not Found")
            writer.close()
        metrics = (await front.http.get("/metrics")).text
        assert 'splitrank_http_requests_total{path="/v1/models",status="200"} 1.0' in metrics

    serving(tmp_path, work)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_key_with_letters_beyond_ascii(tmp_path: Path, encoding: str) -> None:
    async def work(front: Front) -> None:
        for key, status in (("schlüssel", 200), ("schlussel", 401), ("schlüsse", 401)):
            headers = {b"authorization": b"Bearer " + key.encode(encoding)}
            assert (await front.http.get("/v1/models", headers=headers)).status_code == status

    serving(tmp_path, work, api_key="schlüssel")


@pytest.mark.parametrize("key", ["密钥", "\udcff\udcfe"], ids=["Chinese", "no text"])
def test_a_key_that_is_not_latin(tmp_path: Path, key: str) -> None:
    async def work(front: Front) -> None:
        headers = {b"authorization": b"Bearer " + key.encode("utf-8", "surrogateescape")}
        assert (await front.http.get("/v1/models", headers=headers)).status_code == 200
        check_error(await front.http.get("/v1/models", headers={"authorization": "Bearer ?"}), 401)

    serving(tmp_path, work, api_key=key)
