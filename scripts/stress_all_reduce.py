"""The published hang of the quick all-reduce, as a program: growing and shrinking calls without a barrier between.

    python scripts/stress_all_reduce.py --world-size 2 --calls 50000 [--device cuda] [--max-rows 800] [--codecs int8]

Every rank, a process, alternates float16 [s, 1024] of zeros and [s, 2048] of ones; s is halved every 60 calls from
--max-rows until it is below 100, then starts again. Each call takes the next codec of --codecs. Ranks stall at random
(seeded). Every element of every result must be 0, or the number of ranks. A progress bar on stderr, one JSON line on
stdout; exit code 1 if a rank saw a wrong sum, or an error instead of a sum.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.quick_collectives import QuickCollectives
from splitrank.comm.quick_reduce import QuickAllReduce
from splitrank.comm.selection import AllReduceOptions
from splitrank.serving.options.config import child_environment
from splitrank.serving.options.progress import progress

CALLS_A_SIZE, SMALLEST_ROWS = 60, 100
STALL_S = 0.005  # at most
CALLS_A_REPORT = 100
MAX_ERRORS = 5  # then a rank gives up


@dataclass(frozen=True)
class Job:
    """What one rank does."""

    world_size: int
    calls: int
    max_rows: int
    codecs: list[str]
    device: str
    stall_every: int
    seed: int
    timeout_s: float

    def device_of(self, rank: int) -> torch.device:
        """Ranks share the accelerators that there are."""
        if self.device == "cpu":
            return torch.device("cpu")
        return torch.device(self.device, rank % torch.cuda.device_count())

    def shape(self, call: int) -> tuple[int, int]:
        """[rows, columns] of a call."""
        sizes = [self.max_rows]
        while sizes[-1] >= SMALLEST_ROWS:
            sizes.append(sizes[-1] // 2)
        return max(1, sizes[call // CALLS_A_SIZE % len(sizes)]), 2048 if call % 2 else 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-size", type=int, default=2, choices=[2, 4, 8])
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--max-rows", type=int, default=8192)
    parser.add_argument("--codecs", nargs="+", default=["int4", "none"], choices=["none", "int8", "int6", "int4"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--stall-every", type=int, default=20, help="one call in so many is stalled before; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout-s", type=float, default=60.0, help="limit of every wait")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    values = vars(parser.parse_args())
    rank, folder = values.pop("rank"), values.pop("folder")
    job = Job(**values)
    return launch(job) if rank is None else run_rank(job, rank, folder)


def launch(job: Job) -> int:
    """Starts the ranks, shows the slowest one's progress, and sums up."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank), "--folder", folder],
                env=child_environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(job.world_size)
        ]
        try:
            show_progress(job, ranks, Path(folder))
            results = [summary(rank) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    good = all(result["calls"] == job.calls and not result["errors"] for result in results)
    seconds = time.monotonic() - began
    line = {"what": "stress of the quick all-reduce", **vars(job), "seconds": round(seconds, 1), "passed": good}
    print(json.dumps({**line, "ranks": results}))
    return 0 if good else 1


def show_progress(job: Job, ranks: list[subprocess.Popen[str]], folder: Path) -> None:
    with progress(job.calls, f"{job.world_size} ranks", unit="calls") as bar:
        done = 0
        while any(rank.poll() is None for rank in ranks):
            time.sleep(0.2)
            counts = [int(path.read_text() or 0) for path in folder.glob("done*")]
            now = min(counts) if len(counts) == len(ranks) else 0
            bar.update(max(0, now - done))
            done = max(done, now)
        bar.update(job.calls - done if all(rank.returncode == 0 for rank in ranks) else 0)


def summary(rank: subprocess.Popen[str]) -> dict[str, object]:
    """What a rank printed last; one that died has its exit code for an error."""
    assert rank.stdout is not None
    lines = rank.stdout.read().splitlines()
    if lines:
        return dict(json.loads(lines[-1]))
    return {"calls": 0, "errors": [f"the process ended with code {rank.wait()}"]}


def run_rank(job: Job, rank: int, folder: Path) -> int:
    torch.set_num_threads(1)
    calls = Calls(job, rank)
    mesh = None
    try:
        options = AllReduceOptions("quick")
        mesh = Mesh(mesh_position(rank, 1, job.world_size), folder / "rendezvous", job.timeout_s, options, calls.device)
        assert isinstance(mesh.collectives, QuickCollectives)
        while calls.done < job.calls and len(calls.errors) < MAX_ERRORS:
            calls.make(mesh.collectives.quick)
            if calls.done % CALLS_A_REPORT == 0:
                (folder / f"done{rank}").write_text(str(calls.done))
        calls.judge(mesh.collectives.quick)
    except (RuntimeError, ValueError) as error:
        calls.errors.append(f"call {calls.done}: {error}")
    finally:
        if mesh is not None:
            mesh.close()
    print(json.dumps({"rank": rank, "calls": calls.done, "errors": calls.errors}), flush=True)
    return 1 if calls.errors else 0


class Calls:
    """One rank's calls, and what was wrong with their results."""

    def __init__(self, job: Job, rank: int) -> None:
        self.device = job.device_of(rank)
        self.done, self.errors = 0, list[str]()
        self._job, self._stalls = job, random.Random(1000 * job.seed + rank)
        # On an accelerator many calls are queued before the host looks: nothing waits between them.
        self._judge_every = 1 if self.device.type == "cpu" else CALLS_A_SIZE
        self._waiting: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def make(self, quick: QuickAllReduce) -> None:
        """The next call, perhaps after a stall."""
        job, call = self._job, self.done
        if job.stall_every and self._stalls.randrange(job.stall_every) == 0:
            time.sleep(self._stalls.random() * STALL_S)
        # Pairs of calls share a codec: each codec gets zeros and ones.
        codec, value = job.codecs[call // 2 % len(job.codecs)], float(call % 2)
        tensor = torch.full(job.shape(call), value, dtype=torch.float16, device=self.device)
        quick.all_reduce(tensor, None, "two-shot", codec)
        difference = tensor.sub_(value * job.world_size).abs_()
        what = f"call {call} ({codec}, {list(tensor.shape)} of {value:g})"
        self._waiting.append((what, difference.count_nonzero(), difference.max()))
        self.done += 1
        if self.done % self._judge_every == 0:
            self.judge(quick)

    def judge(self, quick: QuickAllReduce) -> None:
        """Looks at the results so far."""
        for what, wrong, largest in self._waiting:
            if int(wrong):
                self.errors.append(f"{what}: {int(wrong)} elements are wrong, by {float(largest):g} at most")
        self._waiting.clear()
        quick.check()


if __name__ == "__main__":
    sys.exit(main())
