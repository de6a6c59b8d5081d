"""A rank process without torch: the real link to the engine, ``FakeModel`` instead of the model.

``python -m tests.fake_rank --run-dir D --rank R``. Faults, so that tests need no luck:
- ``model_dir`` "fail-load:R", "die-load:R" or "hang-load:R": rank R does that before it is ready;
- a prompt ``[fault, R]`` with a token of ``FAULTS``: rank R does that in the step of that prompt.
"""

import argparse
import os
import signal
import sys
import threading

from splitrank.serving.messages import LaunchSpec, StepPlan
from splitrank.serving.rank_link import RankLink, load_spec
from tests.fake_model import FakeModel

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


def serve(link: RankLink, spec: LaunchSpec, rank: int) -> None:
    model = FakeModel(spec)
    answers = rank == (spec.pp_size - 1) * spec.tp_size
    while (received := link.receive()) is not None:
        plan, digest = received
        link.set_phase(f"step {plan.step}")
        fault = fault_of(plan, rank)
        act(fault, "an expert has left")
        result = model.execute(plan, "another hash" if fault == "lie" else digest)
        link.finish(plan.step)
        if answers:
            link.send_result(result)


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
