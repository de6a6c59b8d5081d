"""A rank of the communication tests.

``python -m tests.support.comm_rank SCENARIO FOLDER RANK`` prints what it saw as JSON.
"""

import atexit
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from splitrank.comm.errors import CommunicationError
from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.selection import AllReduceOptions
from tests.support.meeting import meet

TIMEOUT_S = 3.0
FLOAT = torch.float32
HASH, OTHER_HASH = "0123456789abcdef", "fedcba9876543210"
Seen = list[str] | dict[str, list[list[float]]]


def seconds_and_error(action: Callable[[], object]) -> list[str]:
    """How long it took, and the message of the ``CommunicationError`` it ended with ("" if it did not)."""
    start, message = time.monotonic(), ""
    try:
        action()
    except CommunicationError as error:
        message = str(error)
    return [f"{time.monotonic() - start:.3f}", message]


def collectives(folder: Path, rank: int) -> Seen:
    """Three tensor ranks."""
    mesh = _mesh(folder, rank, 1, 3)
    widths = (3, 1, 2)
    rows = torch.arange(4.0)[:, None]
    mine = rows * 100 + rank * 10 + torch.arange(widths[rank])
    return {
        "sum": mesh.collectives.all_reduce_(rows * 10**rank).tolist(),
        "bfloat16": mesh.collectives.all_reduce_(torch.full((1, 2), 2.0**rank, dtype=torch.bfloat16)).tolist(),
        "gathered": mesh.collectives.all_gather_columns(mine, widths).tolist(),
        "one row": mesh.collectives.all_gather_columns(mine[2:3], widths).tolist(),
    }


def grid(folder: Path, rank: int) -> Seen:
    """Two stages of two tensor ranks: sums stay inside a stage, messages between equal tensor ranks."""
    mesh = _mesh(folder, rank, 2, 2)
    total = mesh.collectives.all_reduce_(torch.tensor([[10.0**rank]]))
    if mesh.position.pp_rank == 0:
        mesh.link.send((total, total * 2), 0, HASH)
        meet(folder, "done", rank, 4)
        return {"sum": total.tolist()}
    first, second = mesh.link.receive(2, (1, 1), torch.float32, 0, HASH)
    meet(folder, "done", rank, 4)
    return {"sum": total.tolist(), "received": [first[0].tolist(), second[0].tolist()]}


def link(folder: Path, rank: int) -> Seen:
    """More steps than may be under way at once, of several shapes and types."""
    mesh = _mesh(folder, rank, 2, 1)
    seen: dict[str, list[list[float]]] = {}
    for step, (rows, dtype) in enumerate([(1, torch.float32), (5, torch.bfloat16), (64, torch.float32)] * 3):
        tensors = tuple((torch.arange(rows * 6).view(rows, 6) + step + i).to(dtype) for i in range(2))
        if rank == 0:
            mesh.link.send(tensors, step, HASH)
            continue
        received = mesh.link.receive(2, (rows, 6), dtype, step, HASH)
        aligned = all(tensor.data_ptr() % 64 == 0 for tensor in received)
        equal = all(torch.equal(one, other) for one, other in zip(received, tensors, strict=True))
        seen[str(step)] = [[float(aligned), float(equal)]]
    meet(folder, "done", rank, 2)
    return seen


def feedback(folder: Path, rank: int) -> Seen:
    """Three stages: tokens go from the last to the first, in step order, while states go the other way."""
    mesh = _mesh(folder, rank, 3, 1)
    seen: list[list[float]] = []
    for step in range(4):
        states = (torch.full((2, 3), float(step)),) if rank == 0 else mesh.link.receive(1, (2, 3), FLOAT, step, HASH)
        if rank < 2:
            mesh.link.send(states, step, HASH)
        else:
            mesh.feedback.send((torch.tensor([step, 2**40 + step]),), step, HASH)
    if rank == 0:
        for step in range(4):
            [tokens] = mesh.feedback.receive(1, (2,), torch.int64, step, HASH)
            seen.append(tokens.tolist())
    meet(folder, "done", rank, 3)
    return {"tokens": seen}


def silent_feedback(folder: Path, rank: int) -> Seen:
    """The first stage waits for tokens of a last stage that never sampled."""
    mesh = _mesh(folder, rank, 2, 1)
    seen: list[str] = []
    if rank == 0:
        seen = seconds_and_error(lambda: mesh.feedback.receive(1, (4,), torch.int64, 3, HASH))
    meet(folder, "done", rank, 2)
    return seen


class Message(NamedTuple):
    """What one side sends, or the other expects."""

    count: int = 2
    shape: tuple[int, int] = (4, 8)
    dtype: torch.dtype = torch.float32
    step: int = 5
    plan_hash: str = HASH


MISMATCHES = {
    "none": Message(),
    "step": Message(step=7),
    "hash": Message(plan_hash=OTHER_HASH),
    "dtype, as many bytes": Message(shape=(4, 16), dtype=torch.bfloat16),
    "tensors, as many bytes": Message(count=1, shape=(8, 8)),
    "longer": Message(shape=(5, 8)),
    "shorter": Message(shape=(3, 8)),
}


def mismatch(folder: Path, rank: int) -> Seen:
    """One mesh a case: rank 0 sends it, rank 1 expects the plain message."""
    seen: list[str] = []
    meet(folder, "start", rank, 2)
    for number, sent in enumerate(MISMATCHES.values()):
        case = folder / str(number)
        case.mkdir(exist_ok=True)
        mesh = Mesh(mesh_position(rank, 2, 1), case / "rendezvous", TIMEOUT_S)
        if rank == 0:
            tensor = torch.ones(sent.shape, dtype=sent.dtype)
            mesh.link.send((tensor,) * sent.count, sent.step, sent.plan_hash)
        else:
            seen += seconds_and_error(lambda link=mesh.link: link.receive(*Message()))
        meet(case, "done", rank, 2)
        mesh.close()
    return seen


def dead_stage(folder: Path, rank: int) -> Seen:
    mesh = _mesh(folder, rank, 2, 1)
    meet(folder, "joined", rank, 2)  # one that dies earlier is another failure
    if rank == 0:
        os._exit(0)  # as if killed: nothing is closed
    return seconds_and_error(lambda: mesh.link.receive(1, (4, 8), torch.float32, 0, HASH))


def silent_stage(folder: Path, rank: int) -> Seen:
    mesh = _mesh(folder, rank, 2, 1)
    if rank == 0:
        meet(folder, "done", rank, 2)
        return []
    seen = seconds_and_error(lambda: mesh.link.receive(1, (4, 8), torch.float32, 0, HASH))
    meet(folder, "done", rank, 2)
    return seen


def deaf_stage(folder: Path, rank: int) -> Seen:
    """The next stage takes nothing: the sender stops at the microbatches that may be under way."""
    mesh = _mesh(folder, rank, 2, 1)
    if rank == 1:
        meet(folder, "done", rank, 2)
        return []

    def send_all() -> None:
        for step in range(4):
            mesh.link.send((torch.ones(4, 2**20),), step, HASH)

    seen = seconds_and_error(send_all)
    meet(folder, "done", rank, 2)
    return seen


def dead_tensor_rank(folder: Path, rank: int) -> Seen:
    mesh = _mesh(folder, rank, 1, 2, "torch")
    meet(folder, "joined", rank, 2)  # one that dies earlier is another failure
    if rank == 0:
        os._exit(0)  # as if killed: nothing is closed
    return seconds_and_error(lambda: mesh.collectives.all_reduce_(torch.ones(4)))


def silent_tensor_rank(folder: Path, rank: int) -> Seen:
    mesh = _mesh(folder, rank, 1, 2, "torch")
    if rank == 0:
        meet(folder, "done", rank, 2)
        return []
    seen = seconds_and_error(lambda: mesh.collectives.all_gather_columns(torch.ones(4, 1), (1, 1)))
    meet(folder, "done", rank, 2)
    return seen


def lonely(folder: Path, rank: int) -> Seen:
    return seconds_and_error(lambda: Mesh(mesh_position(rank, 2, 1), folder / "rendezvous", TIMEOUT_S))


def _mesh(folder: Path, rank: int, pp_size: int, tp_size: int, all_reduce: str = "auto") -> Mesh:
    """Closed when the process ends, as a rank does it, whatever happened. The limit is not for a slow start."""
    meet(folder, "start", rank, pp_size * tp_size)
    position = mesh_position(rank, pp_size, tp_size)
    mesh = Mesh(position, folder / "rendezvous", TIMEOUT_S, AllReduceOptions(all_reduce))
    atexit.register(mesh.close)
    return mesh


SCENARIOS = {
    function.__name__: function
    for function in (
        collectives,
        grid,
        link,
        feedback,
        mismatch,
        dead_stage,
        silent_stage,
        silent_feedback,
        deaf_stage,
        dead_tensor_rank,
        silent_tensor_rank,
        lonely,
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))), flush=True)
