"""Ranks of the CPU module as threads of this process: the module gives the interpreter free while it works."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from splitrank._quick_reduce_cpu import Communicator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # by code, as in csrc/quick_reduce/call.h
CODECS = ("none", "int8", "int6", "int4")
ONE_SHOT, TWO_SHOT, REGISTERED, TAGGED = 0, 1, 2, 3
LIMIT_S = 20.0
NUM_SLOTS = 4
SEGMENT_BYTES = 4096


def reduce_on(
    communicator: Communicator,
    tensor: torch.Tensor,
    output: torch.Tensor | None = None,
    codec: str = "none",
    algorithm: int = TWO_SHOT,
    limit_s: float = LIMIT_S,
) -> bool:
    output = tensor if output is None else output
    return communicator.all_reduce(
        tensor.data_ptr(),
        output.data_ptr(),
        tensor.numel(),
        DTYPES.index(tensor.dtype),
        CODECS.index(codec),
        algorithm,
        int(limit_s * 1e9),
    )


class World:
    """Opened communicators; closes them at the end of a ``with``."""

    def __init__(
        self,
        world_size: int,
        num_slots: int = NUM_SLOTS,
        segment_bytes: int = SEGMENT_BYTES,
        instruction_set: str = "",
    ) -> None:
        self.ranks = [
            Communicator(rank, world_size, num_slots, segment_bytes, instruction_set=instruction_set)
            for rank in range(world_size)
        ]
        self.handles = [communicator.handle() for communicator in self.ranks]
        for communicator in self.ranks:
            communicator.open(self.handles, num_slots)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for communicator in self.ranks:
            communicator.close()

    def on_every_rank(self, work: Callable[[int], Any]) -> list[Any]:
        return on_threads([partial(work, rank) for rank in range(len(self.ranks))])

    def all_reduce(
        self, inputs: Sequence[torch.Tensor], codec: str = "none", algorithm: int = TWO_SHOT
    ) -> list[torch.Tensor]:
        outputs = [torch.empty_like(tensor) for tensor in inputs]
        done = self.on_every_rank(
            lambda rank: reduce_on(self.ranks[rank], inputs[rank], outputs[rank], codec, algorithm)
        )
        assert all(done), [communicator.failure() for communicator in self.ranks]
        return outputs

    def failure_kinds(self) -> list[str | None]:
        failures = [communicator.failure() for communicator in self.ranks]
        return [None if failure is None else failure["kind"] for failure in failures]


def on_threads(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the jobs return; the first exception of any is raised here."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = jobs[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LIMIT_S)
        assert not thread.is_alive(), "a rank hangs"
    if errors:
        raise errors[0]
    return results
