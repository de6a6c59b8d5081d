"""A stage of the device link's tests: ``python -m tests.support.device_link_rank SCENARIO FOLDER RANK KIND [DEVICE
...]`` prints what it saw as JSON. On a CPU the device link's regions are memory that the processes share, and the link
by process groups has gloo; the protocol is the same.
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from splitrank.comm.mesh import Mesh
from splitrank.comm.message_header import make_header
from splitrank.comm.position import mesh_position
from splitrank.comm.stage_link import StageLinkOptions
from tests.support.comm_rank import HASH, MISMATCHES, Message, seconds_and_error
from tests.support.meeting import meet

TIMEOUT_S = 3.0
PART_BYTES = 1 << 19


class Stage:
    """A rank with its device. Closed when the process ends, as a rank does it, whatever happened."""

    def __init__(self, folder: Path, rank: int, kind: str, devices: list[str]) -> None:
        self.folder, self.rank, self._kind = folder, rank, kind
        if kind == "nccl":  # as if each rank had a host of its own: by TCP, not by the memory of one
            os.environ.update(NCCL_HOSTID=f"host-{rank}", NCCL_SOCKET_IFNAME="lo", NCCL_NET="Socket")
        self.shares_device = len(set(devices)) < len(devices)
        self.device = torch.device(devices[rank] if devices else "cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def mesh(self, pp_size: int, case: str = ".", timeout_s: float = TIMEOUT_S) -> Mesh:
        folder = self.folder / case
        folder.mkdir(exist_ok=True)
        meet(folder, "start", self.rank, pp_size)  # the limit is for what is tested, not for a slow start
        options = StageLinkOptions(self._kind, PART_BYTES)
        position = mesh_position(self.rank, pp_size, 1)
        mesh = Mesh(position, folder / "rendezvous", timeout_s, None, self.device, options)
        atexit.register(mesh.close)
        return mesh

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tensors(self, message: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Of the message with this number in a direction: every rank can make it."""
        dtype = (torch.float32, torch.bfloat16, torch.int32, torch.int64)[message % 4]
        shape = (1 + message * 37 % 211, 2 * (1 + message * 13 % 97))
        numbers = torch.arange(shape[0] * shape[1], dtype=torch.int64, device=self.device).view(shape)
        return tuple(((numbers * (31 + seed) + message * 7 + part) % 251).to(dtype) for part in range(1 + message % 2))


def both_ways(stage: Stage) -> list[int]:
    """Two stages, each sends and receives, a few messages ahead; the second direction has messages of its own sizes.
    Fewer where the stages share a GPU, which gives each wait a whole slice of time, or the cores of a machine."""
    messages = 600 if stage.shares_device else 1000 if stage.device.type == "cpu" else 3000
    mesh, rank, wrong = stage.mesh(2, timeout_s=60.0), stage.rank, []
    for number in range(messages):
        expected = stage.tensors(number + 5 * (1 - rank), seed=1 - rank)
        mesh.link.send(stage.tensors(number + 5 * rank, seed=rank), number, f"{number:016x}")
        found = mesh.link.receive(len(expected), tuple(expected[0].shape), expected[0].dtype, number, f"{number:016x}")
        for one, other in zip(found, expected, strict=True):
            wrong.append((one != other).any())
    stage.wait()
    mesh.check()
    dist.barrier()  # closing a link by process groups drops what is under way
    mesh.close()
    return [len(wrong), int(torch.stack(wrong).sum())]


def ahead(stage: Stage) -> list[int]:
    """The first stage sends as many as there are places, and waits for none to be read."""
    mesh = stage.mesh(2)
    if stage.rank == 0:
        for number in range(3):
            mesh.link.send(stage.tensors(number, seed=0), number, HASH)
        stage.wait()
        mesh.check()
    meet(stage.folder, "sent", stage.rank, 2)
    same = []
    for number in range(3 if stage.rank else 0):
        expected = stage.tensors(number, seed=0)
        found = mesh.link.receive(len(expected), tuple(expected[0].shape), expected[0].dtype, number, HASH)
        same.append(int(all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))))
    dist.barrier()  # closing a link by process groups drops what is under way
    return same


def ring(stage: Stage) -> list[float]:
    """Three stages: states go along, tokens go from the last to the first."""
    mesh, rank, seen = stage.mesh(3), stage.rank, []
    for step in range(50):
        states: tuple[torch.Tensor, ...] = (torch.full((2, 4), float(step), device=stage.device),)
        if rank > 0:
            states = mesh.link.receive(1, (2, 4), torch.float32, step, HASH)
        if rank < 2:
            mesh.link.send((states[0] + 1,), step, HASH)
        else:
            mesh.feedback.send((states[0].to(torch.int32)[0, :3],), step, HASH)
        if rank == 0:
            [tokens] = mesh.feedback.receive(1, (3,), torch.int32, step, HASH)
            seen.append(float(tokens.sum()) / 3 - step)
    mesh.check()
    dist.barrier()  # closing a link by process groups drops what is under way
    mesh.close()
    return seen


def mismatch(stage: Stage) -> list[str]:
    """One mesh a case: rank 0 sends it, rank 1 expects the plain message."""
    seen: list[str] = []
    for number, sent in enumerate(MISMATCHES.values()):
        mesh = stage.mesh(2, str(number))
        message = Message() if stage.rank else sent
        if stage.rank == 0:
            tensors = tuple(torch.ones(sent.shape, dtype=sent.dtype, device=stage.device) for _ in range(sent.count))
            mesh.link.send(tensors, sent.step, sent.plan_hash)
        else:

            def receive(mesh: Mesh = mesh, message: Message = message) -> None:
                mesh.link.receive(message.count, message.shape, message.dtype, message.step, message.plan_hash)
                stage.wait()
                mesh.check()

            seen += seconds_and_error(receive)
        meet(stage.folder / str(number), "done", stage.rank, 2)
        mesh.close()
    return seen


def silent_stage(stage: Stage) -> list[str]:
    """The peer lives and sends nothing; afterwards every call fails at once, the peer's too."""
    mesh, seen = stage.mesh(2), []

    def wait_for_a_message() -> None:
        mesh.link.receive(1, (4, 8), torch.float32, 7, HASH)
        stage.wait()
        mesh.check()

    if stage.rank == 1:
        seen = seconds_and_error(wait_for_a_message) + seconds_and_error(wait_for_a_message)
    meet(stage.folder, "done", stage.rank, 2)
    return seen if stage.rank == 1 else seconds_and_error(wait_for_a_message)


def deaf_stage(stage: Stage) -> list[str]:
    """The peer reads nothing: the message behind the last free place waits for it."""
    mesh, seen = stage.mesh(2), []

    def send_four() -> None:
        for number in range(4):
            mesh.link.send((torch.ones(4, 8, device=stage.device),), number, HASH)
        stage.wait()
        mesh.check()

    if stage.rank == 0:
        seen = seconds_and_error(send_four)
    meet(stage.folder, "done", stage.rank, 2)
    return seen


def dead_stage(stage: Stage) -> list[str]:
    """The peer's process ends without a word."""
    mesh = stage.mesh(2)
    meet(stage.folder, "joined", stage.rank, 2)
    if stage.rank == 0:
        time.sleep(0.1)
        sys.stdout.flush()
        os._exit(0)

    def wait_for_a_message() -> None:
        mesh.link.receive(1, (4, 8), torch.float32, 0, HASH)
        stage.wait()
        mesh.check()

    return seconds_and_error(wait_for_a_message)


def half_a_message(stage: Stage) -> list[str]:
    """Of the link by process groups: the peer's process ends when it has sent the header alone."""
    mesh = stage.mesh(2)
    if stage.rank == 0:
        header = make_header(0, HASH, 1, (4, 8), torch.float32)
        mesh.link._following.sendall(header)  # type: ignore[union-attr]
        meet(stage.folder, "joined", stage.rank, 2)
        time.sleep(1)  # the other's GPU waits by now
        os._exit(0)

    def wait_for_the_payload() -> None:
        mesh.link.receive(1, (4, 8), torch.float32, 0, HASH)
        meet(stage.folder, "joined", stage.rank, 2)
        stage.wait()
        mesh.check()

    return seconds_and_error(wait_for_the_payload)


SCENARIOS = {
    function.__name__: function
    for function in (both_ways, ahead, ring, mismatch, silent_stage, deaf_stage, dead_stage, half_a_message)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, folder, rank, kind, *devices = sys.argv[1:]
    print(json.dumps(SCENARIOS[scenario](Stage(Path(folder), int(rank), kind, devices))), flush=True)
