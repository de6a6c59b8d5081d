"""How long a message between two stages takes, by each kind of link: one JSON line a kind on stdout.

    python scripts/bench_stage_link.py [--kinds nccl device socket] [--rows 1 64 8192] [--hidden 2048] [--one-host]

Two processes, each with a GPU if there are two, else on the CPU (nccl is gloo there, and device has the processes'
shared memory). NCCL takes them for two hosts unless ``--one-host``: its messages go by TCP over loopback, as those of
``socket`` do. The states of ``rows`` rows go to the second stage, which answers with a token a row. ``us``: from stage
to stage and back, median. ``gb_s``: of many states one after the other, of which each is answered late.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.stage_link import StageLinkOptions
from splitrank.serving.options.config import child_environment

HASH = "0123456789abcdef"
TIMEOUT_S = 60.0
AHEAD = 2  # states on their way in the second measurement


class Bench:
    """One rank."""

    def __init__(self, folder: Path, rank: int, kind: str, most_rows: int, hidden: int) -> None:
        on_gpus = torch.cuda.device_count() >= 2
        self._device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
        self._rank, self._hidden, self._step = rank, hidden, 0
        options = StageLinkOptions(kind, most_rows * hidden * 2)
        self.mesh = Mesh(mesh_position(rank, 2, 1), folder / "rendezvous", TIMEOUT_S, None, self._device, options)

    def measure(self, rows: int, num_messages: int) -> dict[str, float]:
        """On the first stage; the second answers."""
        self._shape = (rows, self._hidden)
        self._states = tuple(torch.ones(self._shape, dtype=torch.bfloat16, device=self._device) for _ in range(2))
        self._tokens = torch.zeros(rows, dtype=torch.int32, device=self._device)
        for _ in range(10):
            self._turn(0)
        seconds = [self._timed(lambda: self._turn(0)) for _ in range(num_messages)]
        total = self._timed(lambda: self._many(num_messages))
        num_bytes = 2 * self._states[0].nbytes * num_messages
        return {"us": round(statistics.median(seconds) * 1e6, 1), "gb_s": round(num_bytes / total / 1e9, 2)}

    def _timed(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _many(self, num_messages: int) -> None:
        for number in range(num_messages):
            self._turn(AHEAD if number >= AHEAD else None)
        if self._rank == 0:
            for late in range(AHEAD):
                self._take(self._step - AHEAD + late)

    def _turn(self, behind: int | None) -> None:
        """Sends states and takes the tokens of the step so far ``behind``; the second stage answers each."""
        on_device = self.mesh.device_link is not None
        if self._rank == 0:
            states = self._states if on_device else tuple(part.to("cpu") for part in self._states)
            self.mesh.link.send(states, self._step, HASH)
            if behind is not None:
                self._take(self._step - behind)
        else:
            received = self.mesh.link.receive(2, self._shape, torch.bfloat16, self._step, HASH)
            received = tuple(part.to(self._device) for part in received)
            tokens = self._tokens + received[0][:, 0].to(torch.int32)
            self.mesh.feedback.send((tokens if on_device else tokens.to("cpu"),), self._step, HASH)
        self._step += 1

    def _take(self, step: int) -> None:
        [tokens] = self.mesh.feedback.receive(1, (self._shape[0],), torch.int32, step, HASH)
        tokens.to(self._device)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def run_rank(folder: str, rank: int, kind: str, args: argparse.Namespace) -> None:
    os.environ.update(child_environment())
    if not args.one_host:
        os.environ.update(NCCL_HOSTID=f"host-{rank}", NCCL_SOCKET_IFNAME="lo", NCCL_NET="Socket")
    place = "cpu"
    if torch.cuda.device_count() >= 2:
        torch.cuda.set_device(rank)
        place = torch.cuda.get_device_name()
    bench = Bench(Path(folder), rank, kind, max(args.rows), args.hidden)
    for rows in args.rows:
        seen = bench.measure(rows, args.messages)
        if rank == 0:
            link = bench.mesh.link_report or "stages linked by sockets"
            print(json.dumps({"kind": kind, "rows": rows, "hidden": args.hidden, "on": place, "link": link} | seen))
    bench.mesh.check()
    dist.barrier()  # closing drops what is under way
    bench.mesh.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["nccl", "device", "socket"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 8192])
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--one-host", action="store_true", help="NCCL finds both GPUs on one host")
    args = parser.parse_args()
    context, failed = multiprocessing.get_context("spawn"), 0
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            ranks = [context.Process(target=run_rank, args=(folder, rank, kind, args)) for rank in range(2)]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
            failed += any(process.exitcode for process in ranks)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
