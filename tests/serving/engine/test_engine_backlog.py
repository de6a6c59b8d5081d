"""A front that is busy for a while loses nothing and costs nobody the engine; one that has stopped does."""

import tempfile
from collections.abc import Iterator

import pytest
import zmq

from splitrank.serving.engine import engine as engine_module
from splitrank.serving.engine.engine import Engine, EngineFailure
from splitrank.serving.protocol.messages import RequestOutputs, StepOutputs
from splitrank.serving.protocol.wire import decode_engine_to_front, front_address
from tests.support.fake_model import small_spec

MOST_MESSAGES = 100_000  # far more than the sockets hold


@pytest.fixture
def ends() -> Iterator[tuple[Engine, "zmq.Socket[bytes]"]]:
    """An engine whose turns the test makes, and the front's socket, which nobody reads."""
    with tempfile.TemporaryDirectory(prefix="sr-") as folder, zmq.Context() as context:
        front = context.socket(zmq.PAIR)
        front.setsockopt(zmq.LINGER, 0)
        front.bind(front_address(folder))
        engine = Engine(small_spec(run_dir=folder))
        try:
            yield engine, front
        finally:
            engine._shut_down(None)
            front.close()


def publish_until_full(engine: Engine) -> int:
    """Publishes one output a turn until one stays for good; returns how many there were.

    The sending thread may still move messages on to the front's buffers: only then is there no room.
    """
    for number in range(MOST_MESSAGES):
        engine._outputs.append(StepOutputs(["0"], [number]))
        engine._publish()
        if engine._outputs and not engine._front.poll(500, zmq.POLLOUT):
            return number + 1
    raise AssertionError("the socket took everything")


def received(front: "zmq.Socket[bytes]") -> list[int]:
    tokens = []
    while front.poll(200):
        message = decode_engine_to_front(front.recv())
        if isinstance(message, RequestOutputs):
            tokens += [token for step in message.steps for output in step.all() for token in output.token_ids]
    return tokens


def test_a_busy_front_gets_everything_later(ends: tuple[Engine, "zmq.Socket[bytes]"]) -> None:
    engine, front = ends
    count = publish_until_full(engine)
    for number in range(count, count + 500):
        engine._outputs.append(StepOutputs(["0"], [number]))
        engine._publish()
    tokens = received(front)
    engine._publish()
    assert not engine._outputs
    assert tokens + received(front) == list(range(count + 500))


def test_a_front_that_has_stopped_ends_the_engine(
    ends: tuple[Engine, "zmq.Socket[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, front = ends
    publish_until_full(engine)
    monkeypatch.setattr(engine_module, "FRONT_STALL_S", 0.0)
    with pytest.raises(EngineFailure, match="the front has taken no message for 0 s"):
        engine._publish()
    received(front)
    engine._publish()  # it has taken some: the limit begins anew
    assert not engine._outputs
