"""The quick all-reduce against gloo on the CPU, as ratios; JSON lines on stdout.

    python scripts/bench_all_reduce.py [--world-sizes 2] [--dtypes float32 bfloat16] [--rounds 15] [--write-table]

Processes take turns between the backends in one run, through the engine's ``Collectives`` with every check on. Medians
over all calls of rank 0. ``flag_ns`` is the cores' flag latency at that moment (two processes only). Then the gathering
of logits. ``--write-table`` also writes configs/all_reduce/cpu.toml from what was measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from all_reduce_table import host_rows, write_table
from flag_latency import FlagProbe, compile_probe

from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.quick_collectives import QuickCollectives
from splitrank.comm.selection import AllReduceOptions
from splitrank.models.torch_dtype import torch_dtype
from splitrank.serving.options.config import child_environment

SIZES = [2**power for power in range(12, 25)]  # bytes
LOGITS = [(1, 8192), (8, 8192), (32, 8192), (8, 248_320)]  # rows, vocabulary
TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[2], choices=[2, 4, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--max-bytes", type=int, default=SIZES[-1])
    parser.add_argument("--write-table", action="store_true")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        Bench(args.folder, args.rank, args.world_sizes[0], args.rounds).run(args.dtypes, args.max_bytes)
        return
    lines = [line for size in args.world_sizes for line in launch(size, args)]
    if args.write_table:
        where = f"{os.cpu_count()} cores of {processor()}, scripts/bench_all_reduce.py --write-table"
        print(write_table(host_rows(lines), "cpu", where), file=sys.stderr)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def launch(world_size: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """Runs the ranks; passes on what rank 0 prints."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        compile_probe(Path(folder))
        options = ["--rounds", args.rounds, "--max-bytes", args.max_bytes, "--dtypes", *args.dtypes]
        command = [sys.executable, __file__, "--folder", folder, "--world-sizes", world_size, *options]
        ranks = [
            subprocess.Popen(
                [*map(str, command), "--rank", str(rank)], env=child_environment(), stdout=subprocess.PIPE, text=True
            )
            for rank in range(world_size)
        ]
        try:
            assert ranks[0].stdout is not None
            for line in ranks[0].stdout:
                print(line, end="", flush=True)
                lines.append(json.loads(line))
            codes = [rank.wait(timeout=TIMEOUT_S) for rank in ranks]
            assert codes == [0] * world_size, codes
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    return lines


class Bench:
    """One rank."""

    def __init__(self, folder: Path, rank: int, world_size: int, rounds: int) -> None:
        torch.set_num_threads(1)
        self._rank, self._world_size, self._rounds = rank, world_size, rounds
        position = mesh_position(rank, 1, world_size)
        self._mesh = Mesh(position, folder / "rendezvous", TIMEOUT_S, AllReduceOptions("quick"))
        assert isinstance(self._mesh.collectives, QuickCollectives)
        self._quick = self._mesh.collectives
        self._probe = FlagProbe(folder, rank) if world_size == 2 else None

    def run(self, dtypes: list[str], max_bytes: int) -> None:
        for name in dtypes:
            for num_bytes in (size for size in SIZES if size <= max_bytes):
                self._sums(torch_dtype(name), num_bytes)
        for rows, vocab_size in LOGITS:
            if 2 * rows * vocab_size <= max_bytes:
                self._gathers(rows, vocab_size)
        self._mesh.close()

    def _sums(self, dtype: torch.dtype, num_bytes: int) -> None:
        tensor = torch.zeros(num_bytes // dtype.itemsize, dtype=dtype)  # stays zero however often it is summed
        quick = self._quick.quick
        medians = self._alternate(
            num_bytes,
            {
                "quick": lambda: self._quick.all_reduce_(tensor),
                "gloo": lambda: self._quick.torch.all_reduce_(tensor),
                "one_shot": lambda: quick.all_reduce(tensor, None, "one-shot"),
                "two_shot": lambda: quick.all_reduce(tensor, None, "two-shot"),
            },
        )
        self._emit("all-reduce", {"dtype": str(dtype).removeprefix("torch."), "bytes": num_bytes}, medians)

    def _gathers(self, rows: int, vocab_size: int) -> None:
        widths = (vocab_size // self._world_size,) * self._world_size
        shard = torch.zeros(rows, widths[0], dtype=torch.bfloat16)
        calls = {
            "quick": lambda: self._quick.all_gather_columns(shard, widths),
            "gloo": lambda: self._quick.torch.all_gather_columns(shard, widths),
        }
        medians = self._alternate(2 * rows * vocab_size, calls)
        self._emit("gather of logits", {"dtype": "bfloat16", "rows": rows, "vocabulary": vocab_size}, medians)

    def _alternate(self, num_bytes: int, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median microseconds of a call. Every block begins together; its first call warms up."""
        count = max(3, min(100, 2**21 // num_bytes))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self._rounds):
            for name, call in calls.items():
                self._quick.all_reduce_(torch.zeros(8))
                call()
                for _ in range(count):
                    began = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - began)
        return {name: 1e6 * statistics.median(seen) for name, seen in times.items()}

    def _emit(self, what: str, labels: dict[str, object], medians: dict[str, float]) -> None:
        self._quick.all_reduce_(torch.zeros(8))
        flag_ns = round(self._probe.measure()) if self._probe else None
        if self._rank == 0:
            numbers = {f"{name}_us": round(value, 1) for name, value in medians.items()}
            ratio = round(medians["gloo"] / medians["quick"], 2)
            line = {"what": what, "world_size": self._world_size, **labels, **numbers, "ratio": ratio}
            print(json.dumps({**line, "flag_ns": flag_ns}), flush=True)


if __name__ == "__main__":
    main()
