"""One rank as a process: ``python -m tests.support.stage_rank JOB RANK``.

It executes the job's runs and saves their logits.
"""

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from splitrank.serving.protocol.messages import LaunchSpec, StepPlan, StepResult, plan_hash
from splitrank.serving.rank.batch_builder import PlannedBatch
from splitrank.serving.rank.steps import Logits
from splitrank.serving.rank.worker import LaunchedStep, Worker
from tests.support.interpreter import speed_up_interpreter


class Run(msgspec.Struct, frozen=True):
    """Steps that all ranks of ``spec`` execute; the sampling rank writes logits and tokens to ``output``. So many steps
    are launched before the first is collected, if the rank's steps overlap."""

    spec: LaunchSpec
    plans: list[StepPlan]
    output: str
    in_flight: int = 1


class RecordingWorker(Worker):
    """Keeps the logits of every step that stores any: greedy steps of a GPU do not."""

    def __init__(self, spec: LaunchSpec, rank: int) -> None:
        super().__init__(spec, rank)
        self.logits: list[torch.Tensor] = []

    def _forward(self, planned: PlannedBatch, step: int, plan_hash: str) -> Logits | None:
        logits = super()._forward(planned, step, plan_hash)
        stored = logits if logits is None or self.spec.device == "cpu" else logits.logits
        if stored is not None:
            self.logits.append(stored[: len(planned.sampled)].float().clone())
        return logits


def execute(run: Run, rank: int) -> None:
    torch.set_num_threads(run.spec.threads_per_rank)
    worker = RecordingWorker(run.spec, rank)
    try:
        worker.load()
        results = list(_results(worker, run))
        if worker.is_sampling_rank:
            tokens = [token for result in results if result is not None for token in result.token_ids]
            logits = torch.cat(worker.logits or [torch.empty(0)]).cpu()
            save_file({"logits": logits, "tokens": torch.tensor(tokens)}, run.output)
        if run.spec.world_size > 1:
            dist.barrier()  # a stage that left with a send under way would leave the next one waiting
    finally:
        worker.close()


def _results(worker: Worker, run: Run) -> Iterator[StepResult | None]:
    launched: deque[LaunchedStep] = deque()
    for plan in run.plans:
        if len(launched) == (run.in_flight if worker.steps.overlaps else 1):
            yield worker.collect(launched.popleft())
        launched.append(worker.launch(plan, plan_hash(msgspec.msgpack.encode(plan))))
    yield from map(worker.collect, launched)


if __name__ == "__main__":
    speed_up_interpreter()
    for job in msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=list[Run]):
        execute(job, int(sys.argv[2]))
