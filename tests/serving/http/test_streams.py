"""How the events of a stream go to their connection: in chunks that any client can read, and no faster than it does."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrank.serving.http import protocol, server
from splitrank.serving.http.listener import Listener, bind
from splitrank.serving.protocol.messages import RequestOutput
from tests.serving.http.test_connections import read_all, small_receiver
from tests.support.front_fakes import LIMIT_S, Front
from tests.support.http_helpers import post_head, raw, serving

BODY = json.dumps({"prompt": [1, 2], "max_tokens": 5, "stream": True}).encode()
PATH = "/v1/completions"


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)).lower()


async def chunks_of(reader: asyncio.StreamReader) -> list[bytes]:
    """Up to the last one, which is empty."""
    chunks = [b" "]
    while chunks[-1]:
        length = int(await asyncio.wait_for(reader.readuntil(b"\r\n"), LIMIT_S), 16)
        data = await asyncio.wait_for(reader.readexactly(length + 2), LIMIT_S)
        assert data.endswith(b"\r\n")
        chunks.append(data[:-2])
    return chunks[1:-1]


def test_each_chunk_holds_whole_events_and_the_connection_goes_on(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        reader, writer = await raw(front, post_head(len(BODY), PATH), BODY)
        for _ in range(2):
            head = await head_of(reader)
            assert head.startswith(b"http/1.1 200 ")
            assert b"\r\ntransfer-encoding: chunked\r\n" in head
            chunks = await chunks_of(reader)
            assert len(chunks) >= 5  # an event is sent when it is there
            assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
            assert chunks[-1] == b"data: [DONE]\n\n"
            events = b"".join(chunks).split(b"\n\n")[:-2]
            assert "".join(json.loads(event[6:])["choices"][0]["text"] for event in events) == "hello"
            writer.write(post_head(len(BODY), PATH).replace("\n", "\r\n").encode() + b"\r\n" + BODY)
        writer.close()

    serving(tmp_path, work)


def test_an_old_client_gets_its_events_without_chunks(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        head = post_head(len(BODY), PATH).replace("HTTP/1.1", "HTTP/1.0")
        reader, writer = await raw(front, head, BODY)
        assert b"chunked" not in await head_of(reader)
        events = (await asyncio.wait_for(reader.read(), LIMIT_S)).split(b"\n\n")  # to the end of the connection
        writer.close()
        assert events[-2:] == [b"data: [DONE]", b""]
        assert "".join(json.loads(event[6:])["choices"][0]["text"] for event in events[:-2]) == "hello"

    serving(tmp_path, work)


def test_a_stream_that_nobody_reads_waits_and_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2000  # events of 200 bytes; the connection's buffer holds 64 KiB
    body = json.dumps({"prompt": [1], "max_tokens": count, "ignore_eos": True, "stream": True}).encode()
    taken = []

    def bind_with_small_buffers(host: str, port: int) -> Listener:
        listener = bind(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the accepted connections', too
        return listener

    def script(prompt: list[int], params: object) -> Iterator[RequestOutput]:
        taken.append(0)
        number = len(taken) - 1
        for taken[number] in range(1, count + 1):
            yield RequestOutput("0", [5], finish_reason="length" if taken[number] == count else None)

    async def work(front: Front) -> None:
        front.client.script = script  # type: ignore[assignment]
        with small_receiver(front) as deaf:
            head = post_head(len(body), PATH).replace("\n", "\r\n").encode()
            await asyncio.get_running_loop().sock_sendall(deaf, head + b"\r\n" + body)
            reader, writer = await raw(front, post_head(len(body), PATH), body)
            await head_of(reader)
            assert len(await chunks_of(reader)) > count
            writer.close()
            # Both had their turns; one was read.
            assert taken[0] < taken[1] / 2 or taken[1] < taken[0] / 2
            await asyncio.wait_for(front.client.aborted.wait(), LIMIT_S)
            with pytest.raises(ConnectionResetError):
                await read_all(deaf)

    monkeypatch.setattr(server, "bind", bind_with_small_buffers)
    serving(tmp_path, work, max_model_len=2 * count, send_timeout_s=0.5)


def test_one_connection_is_read_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came at once is parsed at once, and 256 KiB of the smallest chunks would take a second, in which no other
    connection gets anything."""
    pieces: list[int] = []
    received = protocol.LimitedProtocol.data_received

    def counted(connection: protocol.LimitedProtocol, data: bytes) -> None:
        pieces.append(len(data))
        received(connection, data)

    monkeypatch.setattr(protocol.LimitedProtocol, "data_received", counted)
    head = "POST /v1/completions HTTP/1.1\nhost: x\ncontent-type: application/json\ntransfer-encoding: chunked\n"

    async def work(front: Front) -> None:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt": "hi"}' + b" " * 10_000)
        reader, writer = await raw(front, head, chunks + b"0\r\n\r\n")
        assert await asyncio.wait_for(reader.readline(), LIMIT_S) == b"HTTP/1.1 200 OK\r\n"
        writer.close()

    serving(tmp_path, work)
    assert max(pieces) == protocol.READ_BYTES
