"""A short way from an event stream to its connection: the ASGI messages of a stream's pieces go through six callables
and h11's state machine, which took a third of the front's time for a token, and change nothing of these bytes."""

from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_EXTENSION = "splitrank.direct_writes"


class DirectWrites(Protocol):
    """Pieces of an answer whose head was sent; its end goes through ASGI again."""

    async def write(self, data: bytes) -> None:
        """Returns once the connection's buffer has room, at the latest when the client is gone."""


def direct_writes(scope: Scope) -> DirectWrites | None:
    """None: this connection, or what runs the app, has no such way."""
    found: DirectWrites | None = scope.get("extensions", {}).get(_EXTENSION)
    return found


class WithDirectWrites:
    """Pure ASGI, around the app of one connection."""

    def __init__(self, app: ASGIApp, connection: H11Protocol) -> None:
        self._app = app
        self._connection = connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] == "1.1":  # an older client has no chunks
            scope.setdefault("extensions", {})[_EXTENSION] = _Chunks(self._connection)
        await self._app(scope, receive, send)


class _Chunks:
    """Writes in HTTP/1.1's chunked coding, as h11 does where an answer has no length."""

    def __init__(self, connection: H11Protocol) -> None:
        self._transport, self._flow, self._cycle = connection.transport, connection.flow, connection.cycle

    async def write(self, data: bytes) -> None:
        if self._flow.write_paused and not self._cycle.disconnected:
            await self._flow.drain()
        if data and not self._cycle.disconnected:  # an empty chunk would be the end
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
