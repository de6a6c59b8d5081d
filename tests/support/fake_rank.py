"""A rank process without torch: the real link to the engine, ``FakeModel`` instead of the model.

``python -m tests.support.fake_rank --run-dir D --rank R``. Faults, so that tests need no luck:
- ``model_dir`` "fail-load:R", "die-load:R" or "hang-load:R": rank R does that before it is ready;
- a prompt ``[fault, R]`` with a token of ``FAULTS``: rank R does that in the step of that prompt.
"""

import argparse
import os
import signal
import sys
import threading

import zmq

from splitrank.serving.launch.launcher import load_spec
from splitrank.serving.protocol.messages import CompileGrammar, GrammarCompiled, LaunchSpec, StepPlan
from splitrank.serving.rank.rank_link import RankLink
from tests.support.fake_model import FakeModel

FAULTS = {101: "die", 102: "hang", 103: "fail", 104: "stop", 105: "lie"}
DIE, HANG, FAIL, STOP, LIE = FAULTS


def load(spec: LaunchSpec, rank: int) -> None:
    fault, _, victim = spec.model_dir.partition(":")
    if victim == str(rank):
        act(fault.removesuffix("-load"), "the checkpoint\nis made of cheese")


def act(fault: str, error: str) -> None:
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "hang":
        threading.Event().wait()
    if fault == "fail":
        raise ValueError(error)


def fault_of(plan: StepPlan, rank: int) -> str:
    for admitted in plan.admitted:
        token, *victim = admitted.prompt_token_ids
        if token in FAULTS and victim == [rank]:
            return FAULTS[token]
    return ""


class Peers:
    """What collectives and the pipeline do to real ranks: the one that answers waits for all others' step."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], spec: LaunchSpec, rank: int) -> None:
        self.answers = rank == (spec.pp_size - 1) * spec.tp_size
        self._num_others = spec.world_size - 1
        self._socket = context.socket(zmq.PULL if self.answers else zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        address = f"ipc://{spec.run_dir}/peers"
        if self.answers:
            self._socket.bind(address)
        else:
            self._socket.connect(address)

    def meet(self) -> None:
        if not self.answers:
            self._socket.send(b"")
            return
        for _ in range(self._num_others):
            self._socket.recv()


def serve(link: RankLink, spec: LaunchSpec, rank: int) -> None:
    model = FakeModel(spec)
    peers = Peers(zmq.Context.instance(), spec, rank)
    while (received := link.receive()) is not None:
        if isinstance(received, CompileGrammar):
            compile_grammar(link, rank, received)
            continue
        plan, digest = received
        link.set_phase(f"step {plan.step}")
        fault = fault_of(plan, rank)
        act(fault, "an expert has left")
        result = model.execute(plan, "another hash" if fault == "lie" else digest)
        link.finish(plan.step)
        peers.meet()
        if peers.answers:
            link.send_result(result)


def compile_grammar(link: RankLink, rank: int, message: CompileGrammar) -> None:
    """At once, but for "never"."""
    if message.grammar != "never":
        link._send(GrammarCompiled(rank, message.request_id))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--rank", type=int, required=True)
    arguments = parser.parse_args()
    spec, rank = load_spec(arguments.run_dir), arguments.rank
    phase = "load"
    with RankLink(spec, rank) as link:
        try:
            link.set_phase(phase)
            load(spec, rank)
            link.ready(f"rank {rank}: fake")
            phase = "serve"
            serve(link, spec, rank)
        except Exception as error:
            link.fail(phase, f"{type(error).__name__}: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
