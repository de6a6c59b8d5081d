"""uvicorn's HTTP/1.1 with limits: for the time that a request's head may take to arrive, the time that a client may
take nothing of its answer, and the number of connections."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from splitrank.serving.http.direct_writes import WithDirectWrites
from splitrank.serving.http.responses import error_response
from splitrank.serving.openai.errors import unavailable

HEAD_TIMEOUT_S = 30.0  # from the connection, or the first byte after an answer, to the end of the headers
# Connections beyond the limit that still hear why they are refused, probes of /health and /ready among them.
NUM_REFUSED_AT_ONCE = 32
# Read of one connection at a time. asyncio's 256 KiB hold 40,000 of the smallest chunks, which h11 takes a second to
# read, and all streams would wait for it.
READ_BYTES = 8 * 2**10
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
PROBES = ("/health", "/ready")
_log = logging.getLogger(__name__)


class _Timer:
    """One action that is due, or none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, action: Callable[[], None]) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, action)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class LimitedProtocol(H11Protocol):
    """Closes a connection whose next request does not begin, or whose headers do not end, in time, and one whose client
    takes nothing of what is sent for ``send_timeout_s``. Beyond ``max_connections``, requests are answered 503.

    uvicorn keeps such connections for ever, so a few hundred of them would use up the process's file descriptors.
    """

    def __init__(self, *arguments: Any, send_timeout_s: float, max_connections: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._send_timeout_s = send_timeout_s
        self._max_connections = max_connections
        self._head_timer, self._send_timer = _Timer(self.loop), _Timer(self.loop)
        self._is_lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # of asyncio's transports of sockets
        num_beyond = len(self.connections) - self._max_connections
        if num_beyond > NUM_REFUSED_AT_ONCE:
            transport.abort()
            return
        if num_beyond > 0:
            self.app = _TooManyConnections(self.app, self._max_connections)
        self.app = WithDirectWrites(self.app, self)
        self._watch_head(begun=True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head(begun=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # once the client has taken the rest
            self._watch_sending()
        else:
            self._watch_head(begun=bool(self.conn.trailing_data[0]))  # else uvicorn's keep-alive timer runs

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_sending()

    def pause_writing(self) -> None:
        """The transport holds 64 KiB that the client has not taken."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_timer.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._head_timer.stop()
        self._send_timer.stop()
        super().connection_lost(exc)

    def _watch_head(self, begun: bool) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._head_timer.stop()
        elif begun and not self._head_timer.is_running:
            self._head_timer.start(HEAD_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _watch_sending(self) -> None:
        """From now on the client has the limit's time to take what is being sent, unless it has left: an answer may
        be complete after that."""
        if not self._is_lost:
            self._send_timer.start(self._send_timeout_s, self._drop)

    def _drop(self) -> None:
        _log.info("%s has taken nothing of its answer for %g s: dropped", self.client, self._send_timeout_s)
        # With a reset: otherwise the kernel would keep what is unsent for as long as the client lives.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


def limited_protocol(send_timeout_s: float, max_connections: int) -> Any:
    """What uvicorn takes for a protocol class."""
    return partial(LimitedProtocol, send_timeout_s=send_timeout_s, max_connections=max_connections)


class _TooManyConnections:
    """Pure ASGI. Refuses all requests but the probes, which are to tell a full server from a dead one."""

    def __init__(self, app: ASGIApp, max_connections: int) -> None:
        self._app = app
        self._max_connections = max_connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["path"] not in PROBES:
            error = unavailable(f"{self._max_connections} connections are open", "too_many_connections")
            error.headers["Connection"] = "close"
            app = error_response(scope["path"], error)
        await app(scope, receive, send)
