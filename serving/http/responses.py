"""Answers that watch the client: if it hangs up, its request is cancelled."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from splitrank.serving.http.direct_writes import direct_writes
from splitrank.serving.http.state import ServerState
from splitrank.serving.launch.engine_client import EngineDeadError
from splitrank.serving.openai.dialects import error_body, error_events
from splitrank.serving.openai.errors import ApiError, unavailable

KEEP_ALIVE_S = 15.0
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The client has hung up; nobody reads the answer."""


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def error_response(path: str, error: ApiError) -> Response:
    """In the terms of the API that ``path`` belongs to."""
    return json_response(error_body(path, error), error.status, error.headers)


async def while_connected(work: Coroutine[Any, Any, Result], receive: Receive, state: ServerState) -> Result:
    """The result of ``work``. Cancels it and raises if the client hangs up (``ClientGoneError``) or the server ends."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        ends: set[asyncio.Future[Any]] = {task, gone, state.stopped}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            with api_errors():
                return task.result()
        raise ClientGoneError if gone.done() else state.refusal()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextlib.contextmanager
def api_errors() -> Iterator[None]:
    """Turns the error of a dead engine into an ``ApiError``."""
    try:
        yield
    except EngineDeadError as error:
        raise unavailable(f"the engine is dead: {error}", "engine_dead") from None


class EventStream:
    """Sends server-sent events. Headers go out with the first event, so that a refused request is a plain error.

    While there is no event, comments keep the connection alive, also before the first one (in a long queue).
    """

    def __init__(self, path: str, scope: Scope, send: Send, keep_alive_s: float) -> None:
        self._path = path
        self._send = send
        self._direct = direct_writes(scope)
        self._keep_alive_s = keep_alive_s
        self._started = False
        self._time = asyncio.get_running_loop().time
        self._last_sent = self._time()

    async def run(self, events: AsyncGenerator[bytes, None], receive: Receive, state: ServerState) -> None:
        """Raises ``ApiError`` only before anything was sent, ``ClientGoneError`` at any time."""
        keep_alive = asyncio.create_task(self._keep_alive())
        try:
            await while_connected(self._pump(events), receive, state)
        except ClientGoneError:
            raise
        except Exception as error:
            if not self._started:
                raise
            await self._write(error_events(self._path, as_api_error(error)))
        finally:
            keep_alive.cancel()
            await asyncio.gather(keep_alive, return_exceptions=True)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, events: AsyncGenerator[bytes, None]) -> None:
        async with aclosing(events):
            async for event in events:
                await self._write(event)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._last_sent + self._keep_alive_s - self._time())
            if self._time() - self._last_sent >= self._keep_alive_s:
                await self._write(b": keep-alive\n\n")

    async def _write(self, data: bytes) -> None:
        self._last_sent = self._time()
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        if self._direct is not None:
            await self._direct.write(data)
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})


def as_api_error(error: Exception) -> ApiError:
    """A bug of ours is logged; the client learns nothing of our insides."""
    if isinstance(error, ApiError):
        return error
    _log.error("a stream failed", exc_info=error)
    return ApiError(500, "internal error", type="server_error", code="internal_error")
