"""One rank as a process: ``python -m tests.support.stage_rank JOB RANK``.

It executes the job's runs and saves their logits.
"""

import sys
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from splitrank.serving.protocol.messages import LaunchSpec, StepPlan, plan_hash
from splitrank.serving.rank.batch_builder import PlannedBatch
from splitrank.serving.rank.steps import Logits
from splitrank.serving.rank.worker import Worker


class Run(msgspec.Struct, frozen=True):
    """Steps that all ranks of ``spec`` execute; the sampling rank writes logits and tokens to ``output``."""

    spec: LaunchSpec
    plans: list[StepPlan]
    output: str


class RecordingWorker(Worker):
    """Keeps the logits of every step that stores any: greedy steps of a GPU do not."""

    def __init__(self, spec: LaunchSpec, rank: int) -> None:
        super().__init__(spec, rank)
        self.logits: list[torch.Tensor] = []

    def _forward(self, planned: PlannedBatch, step: int, plan_hash: str) -> Logits | None:
        logits = super()._forward(planned, step, plan_hash)
        stored = logits if logits is None or self.spec.device == "cpu" else logits.logits
        if stored is not None:
            self.logits.append(stored[: len(planned.sampled)].float().cpu().clone())
        return logits


def execute(run: Run, rank: int) -> None:
    torch.set_num_threads(run.spec.threads_per_rank)
    worker = RecordingWorker(run.spec, rank)
    try:
        worker.load()
        results = [worker.execute(plan, plan_hash(msgspec.msgpack.encode(plan))) for plan in run.plans]
        if worker.is_sampling_rank:
            tokens = [token for result in results if result is not None for token in result.token_ids]
            save_file(
                {"logits": torch.cat(worker.logits or [torch.empty(0)]), "tokens": torch.tensor(tokens)}, run.output
            )
        if run.spec.world_size > 1:
            dist.barrier()  # a stage that left with a send under way would leave the next one waiting
    finally:
        worker.close()


if __name__ == "__main__":
    for job in msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=list[Run]):
        execute(job, int(sys.argv[2]))
