"""A rank of the contract suite.

``python -m tests.support.collectives_rank FOLDER RANK WORLD_SIZE`` saves what every call gave.

All ranks make the same calls: every backend, dtype and size in turn, growing and shrinking, on one communicator a
backend. ``inputs`` says what each rank brings, so that the test knows all sums.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.quick_collectives import QuickCollectives
from splitrank.comm.selection import AllReduceOptions

TIMEOUT_S = 60.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# One element, around a block, around a lane's share, several tiles, more than all slots hold; then back and again.
SIZES = (1, 3, 31, 32, 33, 1000, 4096, 65_537, 300_001, 33, 20_000, 1)
SMALL_SIZES = (1, 33, 5000, 257, 40_000, 8)  # for eight ranks on few cores
WIDTHS = (5, 1, 0, 7, 2, 2, 3, 1)  # gathered columns a rank
BACKENDS = {
    "torch": ("torch", "none"),
    "one-shot": ("quick", "none"),
    "two-shot none": ("quick", "none"),
    "two-shot int8": ("quick", "int8"),
    "two-shot int6": ("quick", "int6"),
    "two-shot int4": ("quick", "int4"),
    "auto": ("auto", "none"),
}


@dataclass(frozen=True)
class Case:
    number: int
    dtype: str
    size: int

    def inputs(self, rank: int) -> torch.Tensor:
        """[size], of magnitudes that differ by the block, some zero."""
        return _inputs(self, rank).clone()


@cache
def _inputs(case: Case, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * case.number + rank)
    scale = 2.0 ** ((torch.arange(case.size) // 32 + rank) % 11 - 5)
    values = torch.randn(case.size, generator=generator) * scale
    values[torch.arange(case.size) // 64 % 5 == 3] *= rank % 2  # whole blocks of zeros on even ranks
    return values.to(DTYPES[case.dtype])


def cases(world_size: int) -> list[Case]:
    sizes = SMALL_SIZES if world_size == 8 else SIZES
    pairs = [(dtype, size) for size in sizes for dtype in DTYPES]
    return [Case(number, dtype, size) for number, (dtype, size) in enumerate(pairs)]


def largest(world_size: int) -> Case:
    """Above the tables' one-shot: a codec is for such."""
    return max(cases(world_size), key=lambda case: (case.dtype == "float32", case.size))


def columns(rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Negative zero and an infinity among them: gathering changes no bit."""
    values = torch.arange(3)[:, None] * 100.0 + rank * 10 + torch.arange(WIDTHS[rank])
    if WIDTHS[rank]:
        values[0, 0], values[1, 0] = -0.0, float("-inf")
    return values.to(dtype)


def calls(mesh: Mesh, backend: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """How this backend sums in place."""
    collectives = mesh.collectives
    if "shot" not in backend:
        return collectives.all_reduce_
    assert isinstance(collectives, QuickCollectives), mesh.report
    algorithm, _, codec = backend.partition(" ")
    return lambda tensor: collectives.quick.all_reduce(tensor, None, algorithm, codec or "none")


def run(folder: Path, rank: int, world_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    for backend, (name, codec) in BACKENDS.items():
        place = folder / backend.replace(" ", "-")
        place.mkdir(exist_ok=True)
        mesh = Mesh(mesh_position(rank, 1, world_size), place / "rendezvous", TIMEOUT_S, AllReduceOptions(name, codec))
        reduce = calls(mesh, backend)
        for case in cases(world_size):
            tensor = case.inputs(rank)
            result = reduce(tensor)
            assert result is tensor
            yield f"{backend}/{case.number}", result
        yield f"{backend}/chosen", mesh.collectives.all_reduce_(largest(world_size).inputs(rank))
        gaps = case.inputs(rank).repeat_interleave(2).repeat(1000, 1)
        view = gaps[1:, 1::2]  # neither contiguous nor aligned: summed all the same, and nothing beside it
        summed = mesh.collectives.all_reduce_(view)
        assert torch.equal(gaps[1:, ::2], case.inputs(rank).repeat(999, 1))
        yield f"{backend}/view", summed.contiguous()
        for dtype in DTYPES.values():
            gathered = mesh.collectives.all_gather_columns(columns(rank, dtype), WIDTHS[:world_size])
            yield f"{backend}/gather {dtype}", gathered
        mesh.collectives.all_reduce_(torch.empty(0, 4))
        mesh.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    save_file(dict(run(where, number, count)), where / f"rank{number}.safetensors")
