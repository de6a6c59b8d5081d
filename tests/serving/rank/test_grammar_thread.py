"""Grammars are compiled beside the steps; whatever comes of it, the engine hears that it is over."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from splitrank.serving.protocol.messages import CompileGrammar, GrammarCompiled
from splitrank.serving.protocol.wire import decode_rank_to_engine
from splitrank.serving.rank.grammar_thread import GrammarThread
from tests.support.limits import ANSWER_S, scaled

ADDRESS = "inproc://engine"


class Panic(BaseException):
    """As the library's, no ``Exception``."""


class Compiling:
    """In place of ``Matchers``."""

    def __init__(self) -> None:
        self.has_begun, self.go_on = threading.Event(), threading.Event()
        self.threads: list[str] = []

    def prepare(self, grammar: str) -> None:
        self.threads.append(threading.current_thread().name)
        if grammar == "panics":
            raise Panic("index out of bounds")
        self.has_begun.set()
        assert self.go_on.wait(scaled(ANSWER_S))


@pytest.fixture
def engine() -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(ADDRESS)
        socket.setsockopt(zmq.RCVTIMEO, int(scaled(ANSWER_S) * 1000))
        yield socket


def connected(engine: "zmq.Socket[bytes]") -> Any:
    socket = engine.context.socket(zmq.PUSH)
    socket.connect(ADDRESS)
    return socket


def test_the_caller_goes_on_and_the_engine_hears_of_each(engine: "zmq.Socket[bytes]") -> None:
    matchers = Compiling()
    thread = GrammarThread(matchers, 3, lambda: connected(engine))  # type: ignore[arg-type]
    thread.compile(CompileGrammar("a", "panics"))
    thread.compile(CompileGrammar("b", "takes long"))
    assert decode_rank_to_engine(engine.recv()) == GrammarCompiled(3, "a")
    with pytest.raises(zmq.Again):
        engine.recv(zmq.NOBLOCK)
    matchers.go_on.set()
    assert decode_rank_to_engine(engine.recv()) == GrammarCompiled(3, "b")
    thread.close()
    assert matchers.threads == ["grammars"] * 2


def test_without_a_grammar_there_is_no_thread(engine: "zmq.Socket[bytes]") -> None:
    before = threading.active_count()
    thread = GrammarThread(Compiling(), 0, lambda: connected(engine))  # type: ignore[arg-type]
    assert threading.active_count() == before
    thread.close()


def test_who_closes_waits_for_the_grammar_under_way_and_for_no_other(engine: "zmq.Socket[bytes]") -> None:
    """Hundreds may be asked for when a rank fails, and the engine hears of the failure behind ``close``."""
    matchers = Compiling()
    thread = GrammarThread(matchers, 0, lambda: connected(engine))  # type: ignore[arg-type]
    for name in ("under way", "asked for", "asked for, too"):
        thread.compile(CompileGrammar(name, "takes long"))
    assert matchers.has_begun.wait(scaled(ANSWER_S))
    closing = threading.Thread(target=thread.close)
    closing.start()
    assert thread._closing.wait(scaled(ANSWER_S))
    matchers.go_on.set()
    closing.join()
    assert decode_rank_to_engine(engine.recv()) == GrammarCompiled(0, "under way")
    assert len(matchers.threads) == 1
