"""Streams of ``/v1/completions`` for the benchmarks: a client that costs little, and a server as a program."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ADDRESS = "127.0.0.1"
STOP_S = 60.0


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
            reader, writer = await asyncio.open_connection(ADDRESS, port)
            try:
                await _exchange(reader, writer, body, streamed)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        streamed.error = f"{type(error).__name__}: {error}"
    return streamed


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any], streamed: Streamed
) -> None:
    data = json.dumps({**body, "stream": True, "return_token_ids": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    began = time.perf_counter()
    writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + data)
    status = int((await reader.readline()).split()[1])
    if status != 200:
        streamed.error = f"status {status}"
        return
    while line := await reader.readline():
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            streamed.error = event["error"]["message"]
            return
        choice = event["choices"][0]
        if choice.get("token_ids"):
            streamed.stamps.append(time.perf_counter() - began)
            streamed.token_ids += choice["token_ids"]
        streamed.finish_reason = choice["finish_reason"] or streamed.finish_reason


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
