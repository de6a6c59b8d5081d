"""Streams of ``/v1/completions`` for the benchmarks: clients that cost little, and a server as a program."""

import asyncio
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

ADDRESS = "127.0.0.1"
STOP_S = 60.0
READ_AFTER_S = 0.005
READ_BYTES = 64 * 2**10


@dataclass
class Streamed:
    """What came of one request. ``stamps``: when each event came, in seconds from the sending."""

    token_ids: list[int] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""


async def stream(port: int, body: dict[str, Any], limit_s: float) -> Streamed:
    """Posts ``body`` as a stream with token ids, on a connection of its own. It raises nothing."""
    streamed = Streamed()
    try:
        async with asyncio.timeout(limit_s):
            loop = asyncio.get_running_loop()
            transport, events = await loop.create_connection(lambda: _Events(body, streamed), ADDRESS, port)
            try:
                await events.ended
            finally:
                transport.close()
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        streamed.error = f"{type(error).__name__}: {error}"
    return streamed


class _Choice(msgspec.Struct):
    finish_reason: str | None
    token_ids: list[int] = []


class _Error(msgspec.Struct):
    message: str


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _LastEvent(msgspec.Struct):
    usage: _Usage


_decode = msgspec.json.Decoder(_Event).decode
_decode_last = msgspec.json.Decoder(_LastEvent).decode


def _request(body: dict[str, Any]) -> bytes:
    """Of a connection that ends with the answer."""
    data = msgspec.json.encode(body)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json"
    return f"{head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


class _Events(asyncio.Protocol):
    """Sends the request and reads the answer where it arrives: tasks and readers would cost more than the parsing, on
    cores that the client shares with the server. ``ended`` once the server has closed the connection."""

    def __init__(self, body: dict[str, Any], streamed: Streamed) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._request = _request({**body, "stream": True, "return_token_ids": True})
        self._streamed = streamed
        self._rest = b""  # of a line whose end has not come yet
        self._has_status = False
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._began = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._read(line)
        except (ValueError, IndexError) as error:
            self._end(ValueError(f"an unreadable answer: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error if self._has_status else error or EOFError("the server closed the connection"))

    def _read(self, line: bytes) -> None:
        if not self._has_status:
            status = int(line.split()[1])
            self._has_status = True
            self._streamed.error = "" if status == 200 else f"status {status}"
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            return
        event, streamed = _decode(line[6:]), self._streamed
        if event.error is not None:
            streamed.error = event.error.message
        for choice in event.choices:
            if choice.token_ids:
                streamed.stamps.append(time.perf_counter() - self._began)
                streamed.token_ids += choice.token_ids
            streamed.finish_reason = choice.finish_reason or streamed.finish_reason

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def load(port: int, bodies: list[dict[str, Any]], limit_s: float) -> list[int]:
    """Posts all as streams at once, each on a connection of its own; the number of tokens that each answer counts.

    For a server that shares its cores with this client: a client elsewhere would take nothing of them. So nothing is
    parsed before the end, and a step's tokens are read together, ``READ_AFTER_S`` behind the first of them: so much
    later the end is seen. An answer that is no whole stream is a ``ValueError``.
    """
    connections = [_post(body, port) for body in bodies]
    answers = {connection: bytearray() for connection in connections}
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise TimeoutError(f"{len(selector.get_map())} of {len(bodies)} streams last longer than {limit_s:g} s")
            time.sleep(READ_AFTER_S)
            for key, _ in selector.select(0):
                connection = cast(socket.socket, key.fileobj)
                if not _read(connection, answers[connection]):
                    selector.unregister(connection)
                    connection.close()
    return [_counted_tokens(bytes(answers[connection])) for connection in connections]


def _post(body: dict[str, Any], port: int) -> socket.socket:
    connection = socket.create_connection((ADDRESS, port))
    connection.sendall(_request({**body, "stream": True, "stream_options": {"include_usage": True}}))
    return connection


def _read(connection: socket.socket, answer: bytearray) -> bool:
    """Adds what has arrived; False at the end."""
    data = connection.recv(READ_BYTES)
    answer += data
    return bool(data)


def _counted_tokens(answer: bytes) -> int:
    *_, usage, end = [line for line in answer.splitlines() if line.startswith(b"data: ")] or [b"", b""]
    if b" 200 " not in answer[:16] or end != b"data: [DONE]" or b'"error"' in usage:
        raise ValueError(f"not a whole stream: {answer[-200:]!r}")
    return _decode_last(usage[6:]).usage.completion_tokens


@contextmanager
def serving(*options: object) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """Port and process of a server that takes requests."""
    command = [sys.executable, "-P", "-m", "splitrank.serving", "serve", "--port", "0", "--log-level", "warning"]
    server = subprocess.Popen([*command, *map(str, options)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        yield int(line.rsplit(":", 1)[1]), server
        server.send_signal(signal.SIGTERM)
        if server.wait(STOP_S) != 0:
            raise SystemExit(f"the server ended with code {server.returncode}")
    finally:
        server.kill()  # does nothing to a server that has ended
