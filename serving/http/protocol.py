"""uvicorn's HTTP/1.1 with a limit for the time that a request's head may take to arrive."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 30.0  # from the connection, or the first byte after an answer, to the end of the headers


class HeadTimeoutProtocol(H11Protocol):
    """Closes a connection whose next request does not begin, or whose headers do not end, in time.

    uvicorn keeps such connections for ever, so a few hundred of them would use up the process's file descriptors.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head(begun=True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head(begun=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head(begun=bool(self.conn.trailing_data[0]))  # else uvicorn's keep-alive timer runs

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch_head(self, begun: bool) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif begun and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
