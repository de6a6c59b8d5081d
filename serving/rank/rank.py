"""A rank process: it loads its part, and runs the engine's steps to the end. ``rank_main`` starts it."""

import argparse
import logging
import os
from collections import deque

import torch

from splitrank.comm.errors import CommunicationError
from splitrank.models.weight_plan import AuditError
from splitrank.serving.launch.launcher import load_spec
from splitrank.serving.launch.run_secret import stage_network
from splitrank.serving.options.console import be_lenient_with_streams
from splitrank.serving.options.progress import progress
from splitrank.serving.protocol.messages import CompileGrammar, LaunchSpec
from splitrank.serving.rank.device import pin_threads
from splitrank.serving.rank.grammar_thread import GrammarThread
from splitrank.serving.rank.rank_link import RankLink, StepOrderError
from splitrank.serving.rank.thread_wait import ThreadWait
from splitrank.serving.rank.worker import LaunchedStep, Worker

_LOOK_S = 0.001  # between two looks at a step that the device computes, while no plan comes

# Errors of files, peers and memory, and weights that differ from the files: the engine gets their text. Any other error
# is a bug of ours: the engine gets its type, too, and the log the trace.
_EXPECTED = (ValueError, OSError, CommunicationError, StepOrderError, MemoryError, AuditError)

# How torch and Triton begin what they say of a device that failed.
_DEVICE_ERRORS = ("CUDA error", "HIP error", "Triton Error", "CUDA out of memory", "HIP out of memory")
_ADVICE = " Of the allocated memory"  # torch's own, which does not apply


class DeviceFailure(RuntimeError):
    """The device failed in a kernel: nothing that it holds can be used or freed any more."""


def main(argv: list[str] | None = None) -> int:
    be_lenient_with_streams()
    parser = argparse.ArgumentParser(prog="splitrank.serving.rank.rank_main")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--link-fd", type=int, help="listening socket for the stage before, on another host")
    args = parser.parse_args(argv)
    spec = load_spec(args.run_dir)
    logging.basicConfig(level=spec.log_level.upper(), format=f"%(asctime)s rank {args.rank}: %(message)s")
    torch.set_num_threads(spec.threads_per_rank)
    with RankLink(spec, args.rank) as link:
        return _run(spec, args.rank, link, args.link_fd)


def _run(spec: LaunchSpec, rank: int, link: RankLink, link_fd: int | None) -> int:
    phase = _Phase(link)
    worker = None
    try:
        phase.enter("join")
        worker = Worker(spec, rank, stage_network(spec, link_fd))
        phase.enter("load")
        link.ready(_load(worker), worker.stage_report)
        _serve(worker, link, phase)
    except DeviceFailure as error:
        link.fail(phase.name, str(error))
        os._exit(1)  # destructors would ask the device, and abort
    except _EXPECTED as error:
        link.fail(phase.name, str(error) or type(error).__name__)
        return 1
    except Exception as error:
        logging.exception("unexpected error in phase %s", phase.name)
        link.fail(phase.name, f"{type(error).__name__}: {error}")
        return 1
    finally:
        if worker is not None:
            worker.close()
    return 0


class _Phase:
    """What this rank is doing now, for heartbeats and for the message of a failure."""

    def __init__(self, link: RankLink) -> None:
        self._link, self.name = link, "start"

    def enter(self, name: str) -> None:
        self.name = name
        self._link.set_phase(name)


def _load(worker: Worker) -> str:
    """Loads the weights. Rank 0 shows its progress, which stands for all: the ranks load at the same time."""
    total = worker.plan.num_bytes
    show = worker.spec.show_progress and worker.position.rank == 0
    with progress(total, f"loading rank 0 of {worker.spec.world_size}", unit="B", show=show) as bar:
        return worker.load(bar.update)


def _serve(worker: Worker, link: RankLink, phase: _Phase) -> None:
    """Executes plans until the engine says that it is over. ``DeviceFailure`` if a kernel fails."""
    if worker.spec.exact and worker.spec.device == "cpu":
        torch.set_num_threads(1)  # the rank's own threads compute; torch's would take their cores while they wait
        pin_threads(worker.spec, worker.ops, worker.position.rank)
    launched: deque[LaunchedStep] = deque()
    grammars = GrammarThread(worker.matchers, worker.position.rank, lambda: link.connect("grammars"))
    try:
        _execute_plans(worker, link, phase, launched, grammars)
    except RuntimeError as error:
        if not str(error).startswith(_DEVICE_ERRORS):
            raise
        raise DeviceFailure(_describe(error, launched)) from error
    finally:
        grammars.close()


def _describe(error: RuntimeError, launched: deque[LaunchedStep]) -> str:
    """A kernel fails unseen; the host hears of it at some later call. Of several lines only the first says what."""
    steps = f"; on the device were steps {launched[0].step} to {launched[-1].step}" if launched else ""
    return f"{str(error).splitlines()[0].split(_ADVICE)[0]}{steps}"


def _execute_plans(
    worker: Worker, link: RankLink, phase: _Phase, launched: deque[LaunchedStep], grammars: GrammarThread
) -> None:
    """The loop of a rank: receive a plan, execute it, send the result. ``launched`` are steps not collected yet."""
    thread_wait = ThreadWait(torch.get_num_threads())
    while True:
        if _next_is_result(worker, link, launched):
            _collect(worker, link, launched[0])
            launched.popleft()
            thread_wait.look()
            continue
        if (received := link.receive()) is None:
            return
        if isinstance(received, CompileGrammar):
            grammars.compile(received)
            continue
        plan, plan_hash = received
        phase.enter(f"step {plan.step}")
        launched.append(worker.launch(plan, plan_hash))


def _next_is_result(worker: Worker, link: RankLink, launched: deque[LaunchedStep]) -> bool:
    """Whether to collect a step before the next is launched: it is done, or no plan has come when it is done."""
    if not launched:
        return False
    if not worker.steps.overlaps or len(launched) >= worker.spec.max_in_flight:
        return True
    while not launched[0].is_done:
        if link.has_plan(_LOOK_S):
            return False
    return True


def _collect(worker: Worker, link: RankLink, step: LaunchedStep) -> None:
    result = worker.collect(step)
    link.finish(step.step)
    if result is not None:
        link.send_result(result)
