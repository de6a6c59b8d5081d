"""Compiles grammars beside the steps, for requests that are not admitted yet."""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

import zmq

from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.protocol.messages import CompileGrammar, GrammarCompiled
from splitrank.serving.protocol.wire import encode


class GrammarThread:
    """llguidance gives Python's lock back while it compiles, so steps go on. ``connect`` makes the thread's own socket
    to the engine: ZeroMQ's are not thread safe. The thread starts with the first grammar."""

    def __init__(self, matchers: Matchers, rank: int, connect: Callable[[], zmq.Socket[bytes]]) -> None:
        self._matchers, self._rank, self._connect = matchers, rank, connect
        self._asked: SimpleQueue[CompileGrammar | None] = SimpleQueue()
        self._closing = Event()
        self._thread: Thread | None = None

    def compile(self, message: CompileGrammar) -> None:
        """Returns at once. The engine hears when it is done, also if the grammar is bad: then the request's first token
        fails, with the reason."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="grammars", daemon=True)
            self._thread.start()
        self._asked.put(message)

    def close(self) -> None:
        """Waits for the grammar that is being compiled, which llguidance's limits bound; the others are dropped: the
        reason why this rank ends must not wait for them."""
        self._closing.set()
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()

    def _run(self) -> None:
        with self._connect() as socket:
            while (message := self._asked.get()) is not None and not self._closing.is_set():
                try:
                    self._matchers.prepare(message.grammar)
                except BaseException as error:  # the library's panics are no Exception
                    logging.warning("a grammar cannot be compiled: %s: %s", type(error).__name__, error)
                socket.send(encode(GrammarCompiled(self._rank, message.request_id)))
