"""The front's end of the socket to the engine."""

import asyncio
from collections.abc import Callable

import zmq

from splitrank.serving.protocol.wire import LINGER_MS, front_address

MESSAGES_AT_ONCE = 64  # then it is the turn of other callbacks


class EngineSocket:
    """Calls ``on_message`` in the running event loop with each message that arrives. A send never waits.

    Not ``zmq.asyncio``: its futures and its polling for each message cost more than the tokens of eight streams do.
    """

    def __init__(self, run_dir: str, on_message: Callable[[bytes], None]) -> None:
        self._on_message = on_message
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # no limit is needed: a stream sends two messages at most
        self._socket.bind(front_address(run_dir))
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._receive)

    def send(self, message: bytes) -> None:
        """What is sent while no engine is connected is lost."""
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return
        # The descriptor tells of an arrival once, and a send may have taken that notice away.
        self._loop.call_soon(self._receive)

    def close(self) -> None:
        """Drops what was not delivered."""
        self._loop.remove_reader(self._descriptor)
        self._socket.close(linger=0)
        self._context.term()

    def _receive(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            if self._socket.closed:
                return
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return  # only then will the descriptor tell of the next one
            self._on_message(message)
        self._loop.call_soon(self._receive)
