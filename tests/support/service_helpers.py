"""Requests to the service over an engine that follows a script, and what clients read."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.openai.settings import DEFAULT_SETTINGS, ApiSettings
from splitrank.serving.text.text_engine import TextEngine
from tests.support.front_fakes import LIMIT_S, make_engine

Result = TypeVar("Result")


def with_engine(
    folder: Path, work: Callable[[TextEngine], Awaitable[Result]], text: str = "hello", **options: Any
) -> Result:
    async def scenario() -> Result:
        return await asyncio.wait_for(work(make_engine(folder, text, **options)), LIMIT_S)

    return asyncio.run(scenario())


def complete(
    folder: Path,
    url: str,
    body: dict[str, Any],
    text: str = "hello",
    settings: ApiSettings = DEFAULT_SETTINGS,
    **options: Any,
) -> dict[str, Any]:
    async def work(engine: TextEngine) -> dict[str, Any]:
        service = OpenAIService(engine, settings)
        return await service.complete(service.parse(url, json.dumps(body).encode()))

    answer: dict[str, Any] = json.loads(msgspec.json.encode(with_engine(folder, work, text, **options)))
    return answer


def stream(
    folder: Path,
    url: str,
    body: dict[str, Any],
    text: str = "hello",
    settings: ApiSettings = DEFAULT_SETTINGS,
    **options: Any,
) -> list[dict[str, Any]]:
    """The chunks; checks the framing and the end."""

    async def work(engine: TextEngine) -> list[bytes]:
        service = OpenAIService(engine, settings)
        request = service.parse(url, json.dumps(body | {"stream": True}).encode())
        return [data async for data in service.stream_events(request)]

    sent = with_engine(folder, work, text, **options)
    assert all(data.startswith(b"data: ") and data.endswith(b"\n\n") for data in sent)
    events = [event + b"\n\n" for data in sent for event in data[:-2].split(b"\n\n")]
    assert all(event.startswith(b"data: ") and event.count(b"\n") == 2 for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    return [json.loads(event[6:]) for event in events[:-1]]
