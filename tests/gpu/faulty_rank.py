"""A rank whose GPU faults in a decode step, as SPLITRANK_TEST_FAULT says: ``FAULT RANK``."""

import os
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from splitrank.serving.protocol.messages import StepPlan
from splitrank.serving.rank import rank, worker
from tests.support.fault_names import FAULT

LATER = 1500  # decode steps before it: time to open some streams


@triton.jit
def _store_nowhere(address):
    tl.store(address.to(tl.pointer_type(tl.int32)), 1)


def illegal_access() -> None:
    _store_nowhere[(1,)](2**45)


def failed_assertion() -> None:
    torch.arange(4, device="cuda")[torch.full((1,), 9, device="cuda")]


FAULTS = {"illegal-access": illegal_access, "assertion": failed_assertion}


def plant(name: str) -> None:
    launch, decodes = worker.Worker.launch, iter(range(10**6))

    def faulty(self: worker.Worker, plan: StepPlan, plan_hash: str) -> Any:
        if plan.decodes and next(decodes) == LATER:
            FAULTS[name]()
        return launch(self, plan, plan_hash)

    worker.Worker.launch = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    name, number = os.environ[FAULT].split()
    if sys.argv[sys.argv.index("--rank") + 1] == number:
        plant(name)
    sys.exit(rank.main())
