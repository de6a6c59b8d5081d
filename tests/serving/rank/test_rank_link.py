"""A link against a hand-driven engine's end, in one process."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
import zmq

from splitrank.serving.protocol.messages import (
    Heartbeat,
    RankFailed,
    RankReady,
    RankToEngine,
    Shutdown,
    StepPlan,
    StepResult,
    plan_hash,
)
from splitrank.serving.protocol.wire import bind_ranks, decode_rank_to_engine, encode, rank_identity
from splitrank.serving.rank.rank_link import RankLink, StepOrderError
from tests.support.fake_model import small_spec


class Pair:
    def __init__(self, run_dir: str) -> None:
        self.spec = msgspec.structs.replace(small_spec(tp_size=2), run_dir=run_dir)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.engine = bind_ranks(self.context, self.spec)
        self.engine.setsockopt(zmq.RCVTIMEO, 10_000)
        self.link = RankLink(self.spec, 1)

    def hear(self, kind: type[RankToEngine]) -> RankToEngine:
        """The next message of that kind; heartbeats come in between."""
        while True:
            message = decode_rank_to_engine(self.engine.recv_multipart()[1])
            if isinstance(message, kind):
                return message

    def connect(self) -> None:
        self.link.ready("one line")
        ready = self.hear(RankReady)
        assert isinstance(ready, RankReady)
        assert (ready.rank, ready.report) == (1, "one line")

    def send(self, message: StepPlan | Shutdown) -> str:
        data = encode(message)
        self.engine.send_multipart([rank_identity(1), data])
        return plan_hash(data)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with open_pair() as made:
        yield made


@contextmanager
def open_pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="sr-") as run_dir:
        made = Pair(run_dir)
        try:
            yield made
        finally:
            made.link.close()
            made.engine.close(linger=0)
            made.context.term()


def plan(step: int, previous_hash: str) -> StepPlan:
    return StepPlan(step, previous_hash)


def test_plans_arrive_in_order_with_their_hash_and_end_with_shutdown(pair: Pair) -> None:
    pair.connect()
    first = pair.send(plan(0, ""))
    second = pair.send(plan(1, first))
    pair.send(Shutdown())
    assert pair.link.receive() == (plan(0, ""), first)
    assert pair.link.receive() == (plan(1, first), second)
    assert pair.link.receive() is None


@pytest.mark.parametrize(("step", "digest"), [(2, None), (0, None), (1, "other")])
def test_a_gap_a_repeat_or_another_history_names_both_sides(pair: Pair, step: int, digest: str | None) -> None:
    pair.connect()
    first = pair.send(plan(0, ""))
    pair.link.receive()
    pair.send(plan(step, first if digest is None else digest))
    with pytest.raises(StepOrderError, match=rf"engine sent step {step} .* rank 1 \(stage 0, tp 1\) expects step 1"):
        pair.link.receive()


def test_results_and_progress_reach_the_engine(pair: Pair) -> None:
    result = StepResult(0, "hash", [7])
    pair.link.set_phase("warm-up")
    pair.link.send_result(result)
    assert pair.hear(StepResult) == result
    pair.link.finish(4)
    beat = pair.hear(Heartbeat)
    while isinstance(beat, Heartbeat) and beat.last_step < 4:
        beat = pair.hear(Heartbeat)
    assert beat == Heartbeat(1, "warm-up", 4)


def test_last_words_are_one_line_and_are_delivered_before_the_link_is_closed(pair: Pair) -> None:
    pair.link.fail("step 3", "RuntimeError: out of\n  memory")
    assert pair.hear(RankFailed) == RankFailed(1, "step 3", "RuntimeError: out of memory")
