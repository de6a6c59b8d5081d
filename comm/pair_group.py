"""Process groups of two neighbouring stages each, one for either direction of a stage.

A group of its own for each direction: messages of one NCCL communicator wait for each other, so tokens that nobody
takes yet would hold up states.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from socket import socket
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo

from splitrank.comm.channel_store import ChannelStore
from splitrank.comm.errors import CommunicationError
from splitrank.comm.position import MeshPosition

_ABORT_LIMIT_S = 5.0
SENDER, RECEIVER = 0, 1  # ranks in a group


class PairGroup(Protocol):
    """What is used of torch's backends."""

    def send(self, tensors: list[torch.Tensor], dst_rank: int, tag: int, /) -> dist.Work: ...

    def recv(self, tensors: list[torch.Tensor], src_rank: int, tag: int, /) -> dist.Work: ...

    def abort(self) -> None: ...


@dataclass(frozen=True)
class PairGroups:
    """``previous``: with the stage before, which sends; ``following``: with the stage behind, which receives. Stores
    are kept, since torch would call those of Python that nobody holds."""

    previous: PairGroup
    following: PairGroup
    stores: tuple[ChannelStore, ChannelStore]


def missing_because(device: torch.device) -> str:
    """Why there can be no groups for this kind of device; empty if there can."""
    if device.type == "cuda" and not dist.is_nccl_available():
        return f"torch {torch.__version__} was built without NCCL"
    return ""


def make_groups(
    position: MeshPosition, device: torch.device, previous: socket, following: socket, timeout_s: float
) -> PairGroups:
    """Joins both neighbours and exchanges a number with each. ``CommunicationError`` if that takes ``timeout_s``."""
    stores = ChannelStore(previous, timeout_s), ChannelStore(following, timeout_s)
    made: dict[int, PairGroup] = {}

    def make() -> None:
        # By number of the sending stage: so all wait for the first pair, then for the second, and none in a circle.
        pairs = [((position.pp_rank - 1) % position.pp_size, RECEIVER), (position.pp_rank, SENDER)]
        for number, role in sorted(pairs):
            made[role] = _make_group(stores[0] if role == RECEIVER else stores[1], role, number, device, timeout_s)

    _run_with_limit(make, timeout_s, f"{position}: joining the neighbours by {backend_name(device)}")
    return PairGroups(made[RECEIVER], made[SENDER], stores)


def backend_name(device: torch.device) -> str:
    if device.type != "cuda":
        return "gloo"
    library = "RCCL" if torch.version.hip else "NCCL"
    return f"{library} {'.'.join(map(str, torch.cuda.nccl.version()))}"  # type: ignore[no-untyped-call]


def abort_groups(groups: PairGroups) -> None:
    """Ends kernels that wait for a peer. Does not wait for an abort that hangs: the process may end all the same."""

    def abort() -> None:
        for group in (groups.previous, groups.following):
            group.abort()

    thread = threading.Thread(target=abort, name="abort", daemon=True)
    thread.start()
    thread.join(_ABORT_LIMIT_S)


def _make_group(store: ChannelStore, role: int, number: int, device: torch.device, timeout_s: float) -> PairGroup:
    """The group of stage ``number`` and the one behind it. NCCL joins at the first message, so one is exchanged."""
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        options.global_ranks_in_group = [SENDER, RECEIVER]
        pair = cast(PairGroup, dist.ProcessGroupNCCL(store, role, 2, options))
    else:
        pair = cast(PairGroup, ProcessGroupGloo(store, role, 2, timeout))
    message = torch.full((1,), number if role == SENDER else -1, dtype=torch.int64, device=device)
    # torch remarks on stderr, by itself, that this makes a communicator of two ranks: so it is meant.
    work = pair.send([message], RECEIVER, 0) if role == SENDER else pair.recv([message], SENDER, 0)
    work.wait()
    if int(message.item()) != number:  # waits for the GPU
        raise CommunicationError(f"stage {number} sent {int(message.item())} instead of its number")
    store.end()
    return pair


def _run_with_limit(work: Callable[[], None], timeout_s: float, what: str) -> None:
    """Runs ``work`` in a thread that is left behind if it takes longer: NCCL waits for peers without a limit."""
    failures: list[str] = []

    def run() -> None:
        try:
            work()
        except (CommunicationError, RuntimeError) as error:
            failures.append(str(error).splitlines()[0])

    thread = threading.Thread(target=run, name="join-neighbours", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        failures.append(f"no end within {timeout_s:g} s")
    if failures:
        raise CommunicationError(f"{what}: {failures[0]}")
