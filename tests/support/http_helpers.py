"""A server for one test, and requests as bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.front_fakes import LIMIT_S, Front, make_engine, running


def serving(folder: Path, work: Callable[[Front], Awaitable[None]], text: str = "hello", **options: Any) -> None:
    """Runs ``work`` against a server; ``hang_after`` and ``max_model_len`` go to the fakes, the rest to the config."""
    fakes = {name: options.pop(name) for name in ("hang_after", "max_model_len") if name in options}

    async def scenario() -> None:
        async with running(make_engine(folder, text, **fakes), **options) as front:
            await work(front)

    asyncio.run(asyncio.wait_for(scenario(), 3 * LIMIT_S))


async def raw(front: Front, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
    await writer.drain()
    return reader, writer


def post_head(length: int, path: str = "/v1/chat/completions", extra: str = "") -> str:
    return f"POST {path} HTTP/1.1\nhost: x\ncontent-type: application/json\ncontent-length: {length}\n{extra}"


def check_error(response: httpx.Response, status: int, code: str | None = None) -> None:
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
