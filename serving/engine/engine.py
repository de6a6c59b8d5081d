"""The engine process: a loop that takes requests from the front, plans steps for the ranks, and returns tokens."""

import logging
import time
from collections import deque
from dataclasses import dataclass

import msgspec
import zmq

from splitrank.serving.engine.grammar_watch import GrammarWatch
from splitrank.serving.engine.occupancy import Occupancy
from splitrank.serving.engine.queue_times import QueueTimes
from splitrank.serving.engine.rank_watch import RankWatch
from splitrank.serving.engine.scheduler import Scheduler
from splitrank.serving.launch.run_secret import read_secret
from splitrank.serving.protocol.messages import (
    AbortRequest,
    AddRequest,
    CompileGrammar,
    EngineFailed,
    EngineReady,
    EngineStats,
    EngineToFront,
    FrontToEngine,
    GrammarCompiled,
    LaunchSpec,
    RequestOutput,
    RequestOutputs,
    Shutdown,
    StepOutputs,
    StepResult,
    plan_hash,
)
from splitrank.serving.protocol.wire import (
    bind_ranks,
    connect_front,
    decode_front_to_engine,
    decode_rank_to_engine,
    encode,
    rank_identity,
    rank_name,
    receive_all,
    request_id_of,
)

STATS_S = 1.0
FRONT_STALL_S = 60.0  # a front that takes no message for so long has stopped; a busy one is back earlier
MAX_WAIT_MS = 250  # a passed deadline is noticed so much later at most

logger = logging.getLogger("splitrank.engine")


class EngineFailure(RuntimeError):
    """The engine cannot go on: a rank failed, is silent, or answers another plan than it was sent."""


@dataclass(frozen=True)
class SentStep:
    step: int
    digest: str
    sent_at: float


class Engine:
    """``run`` returns after ``Shutdown`` from the front, or after it has sent the front the reason of a failure."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._started = time.monotonic()
        self._scheduler = Scheduler(spec, spec.pp_size, plans_ahead=True)
        self._watch = RankWatch(spec, self._started)
        self._grammars = GrammarWatch(spec)
        self._occupancy = Occupancy(spec.pp_size, self._started)
        self._queue_times = QueueTimes()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = connect_front(self._context, spec)
        self._ranks = bind_ranks(self._context, spec, read_secret(spec))
        self._poller = zmq.Poller()
        self._poller.register(self._front, zmq.POLLIN)
        self._poller.register(self._ranks, zmq.POLLIN)
        self._sent: deque[SentStep] = deque()
        self._results: deque[StepResult] = deque()
        self._outputs: list[StepOutputs] = []
        self._last_hash = ""
        self._last_commit_at = 0.0
        self._last_stats_at = 0.0
        self._front_full_since: float | None = None
        self._was_idle = True
        self._ready = False
        self._stopping = False

    def run(self) -> str | None:
        """The failure that ended it, or None."""
        failure = None
        try:
            while not self._stopping:
                self._turn()
        except Exception as error:
            # An EngineFailure says all. Any other error is a bug of ours; the front gets its type, the log the trace.
            known = isinstance(error, EngineFailure)
            failure = str(error) if known else f"engine: {type(error).__name__}: {' '.join(str(error).split())}"
            logger.error("%s", failure, exc_info=not known)
        self._shut_down(failure)
        return failure

    def _turn(self) -> None:
        self._receive()
        self._become_ready()
        self._commit()
        self._dispatch()
        self._publish()
        self._check_deadlines()
        self._wait()

    # ------------------------------------------------------------ the steps of a turn

    def _receive(self) -> None:
        for [data] in receive_all(self._front):
            try:
                message = decode_front_to_engine(data)
            except ValueError as error:
                self._refuse_unreadable(data, error)
            else:
                self._on_front_message(message)
        now = time.monotonic()
        for _, data in receive_all(self._ranks):
            report = decode_rank_to_engine(data)
            if isinstance(report, StepResult):
                self._results.append(report)
            elif isinstance(report, GrammarCompiled):
                if self._grammars.is_compiled(report, now):
                    self._scheduler.join(report.request_id)
            else:
                self._watch.on_message(report, now)

    def _refuse_unreadable(self, data: bytes, error: ValueError) -> None:
        """Ends the one request that the message is about, if its id can be read. The others go on."""
        logger.error("a message of the front cannot be read: %s", error)
        request_id = request_id_of(data)
        if request_id is not None:
            reason = f"the engine cannot read this request: {error}"
            refusal = RequestOutput(request_id, [], finish_reason="error", error=reason, error_code="invalid_request")
            self._outputs.append(StepOutputs(others=[refusal]))

    def _on_front_message(self, message: FrontToEngine) -> None:
        output = None
        if isinstance(message, AddRequest):
            output = self._add(message)
        elif isinstance(message, AbortRequest):
            output = self._scheduler.abort(message.request_id)
            self._queue_times.gone(message.request_id)
        else:
            self._stopping = True
        if output is not None:
            self._outputs.append(StepOutputs(others=[output]))

    def _add(self, message: AddRequest) -> RequestOutput | None:
        """A request with a grammar waits until the ranks have compiled it. Returns the refusal if it is not taken."""
        grammar = message.params.grammar
        output = self._scheduler.add(message, held=bool(grammar))
        if output is not None:
            return output
        now = time.monotonic()
        self._queue_times.came(message.request_id, now)
        if grammar:
            self._grammars.asked(message.request_id, now)
            for rank in self._grammars.ranks:
                self._send_rank(rank, encode(CompileGrammar(message.request_id, grammar)))
        return None

    def _become_ready(self) -> None:
        if not self._ready and self._watch.all_ready:
            self._ready = True
            self._send_front(EngineReady(self._watch.reports))

    def _commit(self) -> None:
        while self._results:
            result = self._results.popleft()
            self._check_result(result)
            self._sent.popleft()
            outputs = self._scheduler.commit(result)
            if outputs.request_ids or outputs.others:
                self._outputs.append(outputs)
            self._last_commit_at = time.monotonic()
            self._occupancy.update(len(self._sent), self._last_commit_at)

    def _check_result(self, result: StepResult) -> None:
        due = self._sent[0] if self._sent else None
        if due is None or (result.step, result.plan_hash) != (due.step, due.digest):
            awaited = f"step {due.step} with hash {due.digest}" if due else "none"
            raise EngineFailure(
                f"the last stage answers step {result.step} with hash {result.plan_hash}, the engine awaits {awaited}"
            )

    def _dispatch(self) -> None:
        if not self._ready or self._stopping:
            return
        while (plan := self._scheduler.schedule(self._last_hash)) is not None:
            data = encode(plan)
            self._last_hash = plan_hash(data)
            for rank in range(self._spec.world_size):
                self._send_rank(rank, data)
            sent = SentStep(plan.step, self._last_hash, time.monotonic())
            self._sent.append(sent)
            self._occupancy.update(len(self._sent), sent.sent_at)
            for request_id in self._scheduler.names_of(plan.admitted):
                self._queue_times.admitted(request_id, sent.sent_at)

    def _send_rank(self, rank: int, data: bytes) -> None:
        try:
            self._ranks.send_multipart([rank_identity(rank), data], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._receive()  # the rank may have sent a reason before it ended
            reason = self._watch.rank_error or f"{rank_name(self._spec, rank)} cannot be reached: {error}"
            raise EngineFailure(reason) from error

    def _publish(self) -> None:
        """Sends all outputs in one message. If the front takes none now, they are kept for the next turn; they are
        bounded by what the open requests can generate."""
        if self._outputs and self._send_front(RequestOutputs(self._outputs)):
            self._outputs = []
        self._publish_stats()

    def _publish_stats(self) -> None:
        """Once a second, which is the engine's heartbeat, too, and when the last open request has ended."""
        now, idle = time.monotonic(), self._scheduler.is_idle
        became_idle = idle and not self._was_idle
        self._was_idle = idle
        if became_idle:
            self._scheduler.check()
        if became_idle or now - self._last_stats_at >= STATS_S:
            self._last_stats_at = now
            self._send_front(self._stats(now))

    def _stats(self, now: float) -> EngineStats:
        self._occupancy.update(len(self._sent), now)
        return msgspec.structs.replace(
            self._scheduler.stats(),
            uptime_s=now - self._started,
            num_stages=self._spec.pp_size,
            stage_busy_s=self._occupancy.stage_busy_s,
            bubble_s=self._occupancy.bubble_s,
            queue_time_counts=self._queue_times.counts,
            queue_time_s=self._queue_times.sum_s,
            ranks=self._watch.stats(now) if self._ready else [],
        )

    def _send_front(self, message: EngineToFront) -> bool:
        """Whether the message was sent. If not, the front has ``FRONT_BACKLOG`` unread messages."""
        was_full = self._front_full_since is not None
        if was_full and not self._front.poll(0, zmq.POLLOUT):
            return self._front_is_full()  # before the message is encoded in vain
        try:
            self._front.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return self._front_is_full()
        self._front_full_since = None
        return True

    def _front_is_full(self) -> bool:
        """False, as long as the front may only be busy. Raises ``EngineFailure`` after ``FRONT_STALL_S``."""
        now = time.monotonic()
        self._front_full_since = self._front_full_since or now
        if now - self._front_full_since > FRONT_STALL_S:
            raise EngineFailure(f"the front has taken no message for {FRONT_STALL_S:g} s")
        return False

    def _check_deadlines(self) -> None:
        oldest = self._sent[0] if self._sent else None
        since = max(oldest.sent_at, self._last_commit_at) if oldest else 0.0
        now = time.monotonic()
        failure = self._watch.find_failure(now, oldest.step if oldest else None, since)
        failure = failure or self._grammars.find_overdue(now)
        if failure is not None:
            raise EngineFailure(failure)

    def _wait(self) -> None:
        if not self._stopping:
            self._poller.poll(MAX_WAIT_MS)

    # ------------------------------------------------------------ the end

    def _shut_down(self, failure: str | None) -> None:
        """Sends the failure to the front and ``Shutdown`` to the ranks. Sockets try to deliver both for a second."""
        if failure is not None:
            self._try_send(self._front, [encode(EngineFailed(failure))])
        for rank in range(self._spec.world_size):
            self._try_send(self._ranks, [rank_identity(rank), encode(Shutdown())])
        self._front.close()
        self._ranks.close()
        self._context.term()

    @staticmethod
    def _try_send(socket: zmq.Socket[bytes], parts: list[bytes]) -> None:
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            logger.debug("a last message was not sent: %s", error)
