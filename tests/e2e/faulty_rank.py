"""A rank with planted faults, named by SPLITRANK_TEST_FAULT: what a comparison of layouts must not let pass.

Each fault is of one layout alone, so that the first layout of a comparison is sound: the experts of two layers are
swapped between stages (pp=2), one all-reduce of a step is left out (tp=2), a KV page is given to two requests (pp=3),
one tensor rank goes on with its own part of a sum (tp=2 pp=2).
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from splitrank.models.loader import load_weights
from splitrank.models.weight_plan import LocalParameter, WeightPlan
from splitrank.serving.protocol.messages import LaunchSpec, NewPages
from splitrank.serving.rank import rank, worker
from splitrank.serving.rank.request_table import RequestTable
from tests.support.fault_names import FAULT, RANK

FAULTY = {RANK: "tests.e2e.faulty_rank"}  # of the environment of ``run_forked``


def swap_experts(first: int, second: int) -> None:
    """Each of the two layers gets the routed experts of the other; the plan's audit has seen the right names."""
    swapped = {f"layers.{first}.": f"layers.{second}.", f"layers.{second}.": f"layers.{first}."}

    def renamed(parameter: LocalParameter) -> LocalParameter:
        prefix = next((prefix for prefix in swapped if parameter.name.startswith(prefix + "mlp.experts.")), None)
        if prefix is None:
            return parameter
        pieces = tuple(
            dataclasses.replace(piece, tensor=piece.tensor.replace(prefix, swapped[prefix], 1))
            for piece in parameter.pieces
        )
        return dataclasses.replace(parameter, pieces=pieces)

    def load(module: torch.nn.Module, plan: WeightPlan, *others: Any) -> Any:
        parameters = tuple(map(renamed, plan.parameters))
        assert parameters != plan.parameters, "no expert of the two layers is on this rank"
        return load_weights(module, dataclasses.replace(plan, parameters=parameters), *others)

    worker.load_weights = load


AllReduce = Callable[[torch.Tensor], torch.Tensor]


def replace_an_all_reduce(
    number: int, replaced: Callable[[worker.Worker, AllReduce, torch.Tensor], torch.Tensor]
) -> None:
    """Of every step: the ``number``-th one is ``replaced(worker, all_reduce, tensor)``."""
    launch = worker.Worker.launch

    def faulty(self: worker.Worker, *arguments: Any) -> Any:
        collectives = self.mesh.collectives
        sound, calls = collectives.all_reduce_, iter(range(10**6))

        def all_reduce_(tensor: torch.Tensor) -> torch.Tensor:
            return replaced(self, sound, tensor) if next(calls) == number else sound(tensor)

        collectives.all_reduce_ = all_reduce_  # type: ignore[method-assign]
        try:
            return launch(self, *arguments)
        finally:
            collectives.all_reduce_ = sound  # type: ignore[method-assign]

    worker.Worker.launch = faulty  # type: ignore[method-assign]


def skip_an_all_reduce(number: int) -> None:
    """On all ranks alike: each goes on with its own part of that sum."""
    replace_an_all_reduce(number, lambda rank, sound, tensor: tensor)


def keep_own_part(number: int) -> None:
    """Rank 1 alone takes part in the all-reduce, and goes on with what it had before."""

    def replaced(rank: worker.Worker, sound: AllReduce, tensor: torch.Tensor) -> torch.Tensor:
        before = tensor.clone()
        summed = sound(tensor)
        return before if rank.position.rank == 1 else summed

    replace_an_all_reduce(number, replaced)


def share_a_page() -> None:
    """The first page of a request with an odd number is also that of the request before it."""
    first_page: dict[int, int] = {}
    add_pages = RequestTable.add_pages

    def faulty(self: RequestTable, new: NewPages) -> None:
        add_pages(self, new)
        request = self.rows[new.slot].request
        own = first_page.setdefault(request, new.pages[0])
        self.pages[new.slot, 0] = first_page.get(request - 1, own) if request % 2 else own

    RequestTable.add_pages = faulty  # type: ignore[method-assign]


# Fault: (does the layout have it, how it is planted). The demo's layers 0 to 3 and 4 to 7 are the stages of pp=2.
SEPARATOR = "; "
SMALL_FAULT = "experts of neighbouring layers swapped"  # of the numbers of 24 questions, only five become wrong
# The all-reduces of a step are the embedding's, number 0, then two a layer.
SKIPPED = "layer 1's first all-reduce skipped"
OWN_PART = "a rank keeps its own part of layer 2's first all-reduce"
FAULTS: dict[str, tuple[Callable[[LaunchSpec], bool], Callable[[], None]]] = {
    "experts swapped between stages": (lambda spec: spec.pp_size == 2, lambda: swap_experts(0, 4)),
    SMALL_FAULT: (lambda spec: spec.pp_size == 2, lambda: swap_experts(3, 4)),
    "one all-reduce skipped": (lambda spec: spec.tp_size == 2, lambda: skip_an_all_reduce(0)),
    SKIPPED: (
        lambda spec: (spec.tp_size, spec.pp_size) == (2, 1),
        lambda: skip_an_all_reduce(3),
    ),
    OWN_PART: (lambda spec: (spec.tp_size, spec.pp_size) == (2, 2), lambda: keep_own_part(5)),
    "a page given to two requests": (lambda spec: spec.pp_size == 3, share_a_page),
}


def main() -> int:
    spec = rank.load_spec(sys.argv[sys.argv.index("--run-dir") + 1])
    for name in os.environ[FAULT].split(SEPARATOR):
        has_fault, plant = FAULTS[name]
        if has_fault(spec):
            plant()
    return rank.main()


if __name__ == "__main__":
    sys.exit(main())
