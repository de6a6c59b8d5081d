"""A rank's connection to the engine: receives plans, sends results and heartbeats."""

import threading
from types import TracebackType

import zmq

from splitrank.serving.launch.processes import exit_with_parent
from splitrank.serving.launch.run_secret import read_secret
from splitrank.serving.protocol.messages import (
    CompileGrammar,
    Heartbeat,
    LaunchSpec,
    RankFailed,
    RankReady,
    RankToEngine,
    StepPlan,
    StepResult,
    plan_hash,
)
from splitrank.serving.protocol.wire import connect_rank, decode_engine_to_rank, encode, rank_identity, rank_name

HEARTBEAT_S = 0.5


class StepOrderError(RuntimeError):
    """A plan that does not follow the one before it: engine and rank differ in the step or the hash."""


class RankLink:
    """To be used from one thread. Another thread sends heartbeats, so that a long step does not look like a death. If
    the front dies, this process ends.

    ``receive`` raises ``StepOrderError``. ``close``, or the end of a ``with`` block, delivers the last message.
    """

    def __init__(self, spec: LaunchSpec, rank: int) -> None:
        if spec.front_pid:  # 0 in tests that have no front
            exit_with_parent(spec.front_pid, spec.run_dir)
        self._spec = spec
        self._rank = rank
        self._phase = "start"
        self._received_step = -1
        self._received_hash = ""
        self._finished_step = -1
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._secret = read_secret(spec)
        self._socket = connect_rank(self._context, spec, rank_identity(rank), self._secret)
        self._closing = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()

    def set_phase(self, phase: str) -> None:
        """What heartbeats say that this rank does: "join", "load", "serve", "step 17"."""
        self._phase = phase

    def ready(self, report: str, stage_report: str = "") -> None:
        """``report``: one printable line about what this rank holds; ``stage_report``: one for its whole stage."""
        self._phase = "serve"
        self._send(RankReady(rank=self._rank, report=report, stage_report=stage_report))

    def has_plan(self, timeout_s: float) -> bool:
        """Whether a message is there, or comes within ``timeout_s``."""
        return bool(self._socket.poll(int(timeout_s * 1000)))

    def connect(self, name: str) -> "zmq.Socket[bytes]":
        """Another socket to the engine, for another thread, which closes it before this link is closed."""
        identity = rank_identity(self._rank) + f"-{name}".encode()
        return connect_rank(self._context, self._spec, identity, self._secret)

    def receive(self) -> tuple[StepPlan, str] | CompileGrammar | None:
        """The next plan and its hash, or a grammar to compile; None to shut down. The wait has no limit, since the
        engine may be idle. If the front dies, this process ends; if the engine dies, the front ends this process."""
        data = self._socket.recv()
        message = decode_engine_to_rank(data)
        if not isinstance(message, StepPlan):
            return message if isinstance(message, CompileGrammar) else None
        self._check_order(message)
        self._received_step, self._received_hash = message.step, plan_hash(data)
        return message, self._received_hash

    def finish(self, step: int) -> None:
        """This rank has executed ``step``."""
        self._finished_step = step

    def send_result(self, result: StepResult) -> None:
        self._send(result)

    def fail(self, phase: str, error: str) -> None:
        """Sends the error of this rank and closes. Waits up to a second for the delivery; then the process may exit."""
        self._send(RankFailed(rank=self._rank, phase=phase, error=" ".join(error.split())))
        self.close()

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._beating.join()
        self._socket.close()
        self._context.term()

    def __enter__(self) -> "RankLink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_order(self, plan: StepPlan) -> None:
        if plan.step == self._received_step + 1 and plan.previous_hash == self._received_hash:
            return
        here = rank_name(self._spec, self._rank)
        raise StepOrderError(
            f"engine sent step {plan.step} after hash {plan.previous_hash!r}, but {here} expects "
            f"step {self._received_step + 1} after hash {self._received_hash!r}"
        )

    def _send(self, message: RankToEngine) -> None:
        self._socket.send(encode(message))

    def _beat(self) -> None:
        socket = self.connect("heartbeat")
        while True:
            socket.send(encode(Heartbeat(rank=self._rank, phase=self._phase, last_step=self._finished_step)))
            if self._closing.wait(HEARTBEAT_S):
                break
        socket.close()
