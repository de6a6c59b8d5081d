"""A rank of the quick all-reduce's misfortunes: ``python -m tests.support.quick_rank SCENARIO FOLDER RANK WORLD_SIZE``.

Prints a JSON line for each thing that it saw: seconds and the message of the error that ended an action.
"""

import json
import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from splitrank.comm.errors import CommunicationError
from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.quick_collectives import QuickCollectives
from splitrank.comm.quick_reduce import QuickAllReduce
from splitrank.comm.selection import AllReduceOptions
from tests.support.meeting import meet

TIMEOUT_S = 3.0
LONG = 2**24  # elements: calls of tens of milliseconds


class Rank:
    """This process."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.folder, self.rank, self.world_size = folder, rank, world_size

    def mesh(self) -> Mesh:
        self.meet("start")  # the limit is for what is tested, not for a slow start
        position = mesh_position(self.rank, 1, self.world_size)
        return Mesh(position, self.folder / "rendezvous", TIMEOUT_S, AllReduceOptions("quick"))

    def quick(self) -> QuickAllReduce:
        collectives = self.mesh().collectives
        assert isinstance(collectives, QuickCollectives)
        return collectives.quick

    def say(self, what: object) -> None:
        # One write: print() writes the line and its end apart, and two threads that speak at once would mix them.
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    def attempt(self, action: Callable[[], object]) -> None:
        """Says how long it took and what it ended with ("" if it went well)."""
        start, message = time.monotonic(), ""
        try:
            action()
        except CommunicationError as error:
            message = str(error)
        self.say([round(time.monotonic() - start, 3), message])

    def meet(self, name: str) -> None:
        """Waits until all ranks are here."""
        meet(self.folder, name, self.rank, self.world_size)


def differing(first: Callable[[QuickAllReduce], object], others: Callable[[QuickAllReduce], object]):
    """A good call, then one that rank 0 makes otherwise than its peers, then a good one again."""

    def scenario(own: Rank) -> None:
        quick = own.quick()
        own.attempt(lambda: quick.all_reduce(torch.ones(100)))
        own.attempt(lambda: (first if own.rank == 0 else others)(quick))
        own.attempt(lambda: quick.all_reduce(torch.ones(100)))
        own.attempt(quick.close)
        own.attempt(lambda: quick.all_reduce(torch.ones(100)))

    return scenario


def missing_call(own: Rank) -> None:
    quick = own.quick()
    if own.rank > 0:
        own.attempt(lambda: quick.all_reduce(torch.ones(4096)))
    own.meet("failed")
    own.attempt(lambda: quick.all_reduce(torch.ones(8192)))


def leaves_early(own: Rank) -> None:
    """Rank 0 closes though its peers still call: they are told when it has waited long enough."""
    quick = own.quick()
    if own.rank == 0:
        own.attempt(quick.close)
    else:
        own.attempt(lambda: quick.all_reduce(torch.ones(4096)))


def overlap(own: Rank) -> None:
    """Rank 0 calls from two threads."""
    quick = own.quick()
    actions = [lambda: own.attempt(lambda: quick.all_reduce(torch.ones(100)))] * 2
    if own.rank == 0:
        threads = [threading.Thread(target=action) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    own.meet("overlapped")
    if own.rank > 0:
        actions[0]()


def no_room(own: Rank) -> None:
    if own.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    own.attempt(own.mesh)
    own.say(sum("splitrank-quick-reduce" in os.readlink(link) for link in _descriptors()))


def _descriptors() -> list[Path]:
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and os.path.lexists(link)]


def idle_peer(own: Rank) -> None:
    """Rank 1 is killed or stopped while it sleeps between two calls."""
    quick = own.quick()
    own.attempt(lambda: quick.all_reduce(torch.ones(100_000)))
    if own.rank == 1:
        time.sleep(60)
    own.attempt(lambda: quick.all_reduce(torch.ones(100_000)))
    own.attempt(quick.close)


def busy_peer(own: Rank) -> None:
    """Calls without end, until rank 1 is killed or stopped in the middle of one."""
    quick = own.quick()
    tensor = torch.zeros(LONG if own.world_size == 2 else LONG // 8)
    own.attempt(lambda: quick.all_reduce(tensor))

    def call_for_ever() -> None:
        while True:
            quick.all_reduce(tensor)

    own.attempt(call_for_ever)
    own.attempt(quick.close)


def dies_in_phase(phase: int) -> Callable[[Rank], None]:
    """Rank 1 dies of its own input, a file that is cut off: before what it sends first, or before what it sums."""

    def scenario(own: Rank) -> None:
        quick = own.quick()
        half = mmap.PAGESIZE  # one tile: rank 1 sends the first half to rank 0, and sums the second
        path = own.folder / f"input{own.rank}"
        path.write_bytes(bytes(2 * half))
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 2 * half)
        tensor = torch.frombuffer(mapped, dtype=torch.float32)
        output = torch.empty(tensor.numel())
        own.attempt(lambda: quick.all_reduce(tensor, output))
        if own.rank == 1:
            os.truncate(path, half if phase == 2 else 0)
        own.attempt(lambda: quick.all_reduce(tensor, output))

    return scenario


SCENARIOS: dict[str, Callable[[Rank], None]] = {
    "shape": differing(lambda q: q.all_reduce(torch.ones(1024)), lambda q: q.all_reduce(torch.ones(2048))),
    "dtype": differing(
        lambda q: q.all_reduce(torch.ones(1024, dtype=torch.float16)),
        lambda q: q.all_reduce(torch.ones(1024, dtype=torch.bfloat16)),
    ),
    "codec": differing(
        lambda q: q.all_reduce(torch.ones(1024), codec="int8"), lambda q: q.all_reduce(torch.ones(1024), codec="int4")
    ),
    "algorithm": differing(
        lambda q: q.all_reduce(torch.ones(100)), lambda q: q.all_reduce(torch.ones(100), algorithm="one-shot")
    ),
    "missing_call": missing_call,
    "leaves_early": leaves_early,
    "overlap": overlap,
    "no_room": no_room,
    "idle_peer": idle_peer,
    "busy_peer": busy_peer,
    "dies_in_phase_1": dies_in_phase(1),
    "dies_in_phase_2": dies_in_phase(2),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    SCENARIOS[sys.argv[1]](Rank(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    # Leave as a rank that has failed does: without waiting for anybody.
    os._exit(0)
