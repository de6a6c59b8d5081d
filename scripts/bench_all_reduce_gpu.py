"""The quick all-reduce on GPUs beside NCCL and torch's symmetric memory: JSON lines, one per message size.

    python scripts/bench_all_reduce_gpu.py --output results.jsonl [--sizes 8192 131072] [--write-table | --tune]

One process a GPU: 2, 4 or 8. Each way is captured in a CUDA graph of several calls; graphs are replayed in turn, round
by round, so that all ways see the same machine. Microseconds a call: median over all replays, of the slowest rank.
``--write-table`` also writes this number of ranks into configs/all_reduce/cuda.toml. ``--tune`` tries numbers of blocks
and threads for our own ways instead of the tuned ones.
"""

import argparse
import datetime
import functools
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
import torch.multiprocessing as mp
from all_reduce_table import gpu_rows, write_table

from splitrank.comm.native import ALGORITHM_CODES, CODEC_CODES, load_module
from splitrank.comm.selection import WORLD_SIZES

KIB, MIB = 2**10, 2**20
SIZES = [8 * KIB * 2**i for i in range(15)]
TIMEOUT_NS = 5_000_000_000
BFLOAT16 = 1  # the native module's code
PEERS = ("one-element-kernel", "nccl", "symm-one-shot", "symm-two-shot")
CODED = [codec for codec in CODEC_CODES if codec != "none"]
OURS = ["tagged", "registered", "one-shot", "two-shot", *(f"two-shot+{codec}" for codec in CODED)]
TWO_RANKS = [f"{algorithm}+{codec}" for algorithm in ("one-shot", "tagged") for codec in CODED]
Way = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write-table", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--ours", nargs="+", help="default: all that so many GPUs have")
    parser.add_argument("--no-peers", action="store_true", help="only our own ways")
    parser.add_argument("--modules", nargs="*", default=[], help="other builds of the native module: NAME=FILE")
    parser.add_argument("--segment-kib", type=int, nargs="*", default=[], help="also with slots of that size")
    options = parser.parse_args()
    options.command = " ".join(["python", *sys.argv])
    world_size = torch.cuda.device_count()
    if world_size not in WORLD_SIZES:
        sys.exit(f"{world_size} GPUs: 2, 4 or 8 are needed")
    if options.write_table and (options.tune or options.no_peers or options.ours):
        sys.exit("--write-table compares all tuned ways with NCCL: without --tune, --no-peers and --ours")
    options.ours = options.ours or (OURS + TWO_RANKS if world_size == 2 else OURS)
    with tempfile.TemporaryDirectory() as folder:
        spawn: Any = mp.spawn  # type: ignore[attr-defined]
        spawn(run_rank, (world_size, f"{folder}/rendezvous", options), nprocs=world_size)


def run_rank(rank: int, world_size: int, rendezvous: str, options: argparse.Namespace) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size,
        device_id=torch.device("cuda", rank),
    )  # fmt: skip
    modules = {"": load_module("cuda")} | {name: load_build(file) for name, file in parse_modules(options.modules)}
    ours = {name: Quick(module, rank, world_size) for name, module in modules.items()}
    ours |= {f"{kib}KiB": Quick(modules[""], rank, world_size, kib * KIB) for kib in options.segment_kib}
    report(rank, options, describe_machine(world_size, ours, options) | {"link": link_bandwidth(rank, world_size)})
    lines = []
    for num_bytes in options.sizes:
        lines.append(measure(num_bytes, rank, world_size, ours, options))
        report(rank, options, lines[-1])
    if options.write_table and rank == 0:
        where = f"{world_size} x {torch.cuda.get_device_name()}, scripts/bench_all_reduce_gpu.py --write-table"
        print(write_table(gpu_rows(lines, world_size), "cuda", where), file=sys.stderr)
    for quick in ours.values():
        quick.close()
    dist.destroy_process_group()


def report(rank: int, options: argparse.Namespace, record: dict[str, Any]) -> None:
    if rank != 0:
        return
    print(json.dumps(record), flush=True)
    if options.output:
        with options.output.open("a") as file:
            file.write(json.dumps(record) + "\n")


def describe_machine(world_size: int, ours: dict[str, "Quick"], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{world_size} x {torch.cuda.get_device_name()}",
        "command": options.command,
        "torch": torch.__version__,
        "nccl": nccl_version(),
        "communicator_bytes": ours[""].native.num_bytes,
        "slots": ours[""].num_slots,
    }


def nccl_version() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def parse_modules(arguments: list[str]) -> Iterator[tuple[str, str]]:
    for argument in arguments:
        name, _, file = argument.partition("=")
        yield name, file


def load_build(file: str) -> Any:
    """Another build of the module beside the installed one."""
    loader = ExtensionFileLoader("_quick_reduce_gpu", file)
    spec = spec_from_file_location("_quick_reduce_gpu", file, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def gather(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=cpu_group())
    return values


_cpu_groups: list[Any] = []


def world_name() -> Any:
    assert dist.group.WORLD is not None
    return dist.group.WORLD.group_name


def cpu_group() -> Any:
    if not _cpu_groups:
        _cpu_groups.append(dist.new_group(backend="gloo"))
    return _cpu_groups[0]


class Quick:
    """Our communicator, on the current stream."""

    def __init__(self, module: Any, rank: int, world_size: int, segment_bytes: int = 0) -> None:
        num_slots, usual_bytes = module.default_shape(world_size)
        self.native = module.Communicator(rank, world_size, num_slots, segment_bytes or usual_bytes, rank)
        self.num_slots = min(gather(self.native.max_slots()))
        self.native.open(gather(self.native.handle()), self.num_slots)

    def all_reduce(self, input: torch.Tensor, output: torch.Tensor, way: str, **tuning: int) -> None:
        algorithm, _, codec = way.partition("+")
        arguments = (input.numel(), BFLOAT16, CODEC_CODES[codec or "none"], ALGORITHM_CODES[algorithm], TIMEOUT_NS)
        stream = torch.cuda.current_stream().cuda_stream
        if not self.native.all_reduce(input.data_ptr(), output.data_ptr(), *arguments, stream, **tuning):
            raise RuntimeError(f"{way}, {input.nbytes} bytes: {self.native.failure()}")

    def takes(self, way: str, num_bytes: int) -> bool:
        """Tagged calls have places for messages up to a size, which depends on the number of ranks."""
        algorithm, _, codec = way.partition("+")
        if algorithm != "tagged":
            return True
        return num_bytes <= 2 * int(self.native.tagged_capacity(BFLOAT16, CODEC_CODES[codec or "none"]))

    def register(self) -> None:
        self.native.register_inputs(gather(self.native.captured_inputs()))

    def check(self) -> None:
        if self.native.failure() is not None:
            raise RuntimeError(str(self.native.failure()))

    def close(self) -> None:
        self.native.leave()
        dist.barrier(cpu_group())
        self.native.close()


def make_input(num_bytes: int, rank: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(rank)
    return torch.randn(num_bytes // 2, generator=generator, device="cuda").bfloat16()


def make_ways(x: torch.Tensor, y: torch.Tensor, ours: dict[str, Quick], options: Any) -> dict[str, Way]:
    """What is compared, by name. Peers' sums stay in place or in a new tensor; ours go from x to y."""
    num_bytes = x.nbytes
    element = y[:1]
    ways: dict[str, Way] = {"one-element-kernel": lambda: element.add_(1)}  # what any kernel of a graph costs
    if not options.no_peers:
        shared = symm_mem.empty(x.shape, dtype=x.dtype, device=x.device)
        group = world_name()
        symm_mem.rendezvous(shared, group)
        shared.copy_(x)
        in_place = x.clone()  # grows to infinity: no way's time depends on the values
        ways["nccl"] = lambda: dist.all_reduce(in_place)
        ways["symm-one-shot"] = lambda: torch.ops.symm_mem.one_shot_all_reduce(shared, "sum", group)
        ways["symm-two-shot"] = lambda: torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", group)
    for (name, quick), way in itertools.product(ours.items(), options.ours):
        if not quick.takes(way, num_bytes):
            continue
        for tuning in tunings(way, num_bytes) if options.tune else [{}]:
            label = " ".join([f"{name}:{way}" if name else way, *(f"{key}={value}" for key, value in tuning.items())])
            ways[label] = functools.partial(quick.all_reduce, x, y, way, **tuning)
    return ways


def tunings(way: str, num_bytes: int) -> list[dict[str, int]]:
    """What to try; a block has tiles of 2 KiB or more."""
    if way.startswith("tagged"):
        sizes = itertools.product([64, 128, 192, 256], [2048, 4096, 8192] if num_bytes < MIB else [4096])
        return [{"num_blocks": 128, "num_threads": threads, "min_tile_bytes": least} for threads, least in sizes]
    blocks = [16, 64] if num_bytes < MIB else [64, 128]
    tiles = [1] if way == "registered" or num_bytes < MIB else [1, 2]
    threads = [128, 256] if num_bytes < MIB else [256, 512, 1024]
    return [
        {"num_blocks": b, "num_threads": t, "tiles_per_block": n, "min_tile_bytes": 2048}
        for b, t, n in itertools.product(blocks, threads, tiles)
    ]


def measure(num_bytes: int, rank: int, world_size: int, ours: dict[str, Quick], options: Any) -> dict[str, Any]:
    x = make_input(num_bytes, rank)
    y = torch.empty_like(x)
    ways = make_ways(x, y, ours, options)
    num_calls = 40 if num_bytes <= MIB else 10 if num_bytes <= 16 * MIB else 4
    graphs = {}
    for name, way in ways.items():
        graphs[name] = capture(way, num_calls, warm="registered" not in name)
    for quick in ours.values():
        quick.register()
    torch.cuda.synchronize()
    expected = exact_sum(num_bytes, world_size)
    for name in ways:
        if name not in PEERS:
            check_sum(graphs[name], name, y, expected)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, graph in graphs.items():
            times[name] += replay(graph, num_calls)
    for quick in ours.values():
        quick.check()
    medians = {name: statistics.median(values) for name, values in times.items()}
    slower = {name: max(one[name] for one in gather(medians)) for name in medians}
    return {"bytes": num_bytes, "us": {name: round(value, 2) for name, value in slower.items()}}


def exact_sum(num_bytes: int, world_size: int) -> torch.Tensor:
    sums = [make_input(num_bytes, rank).float() for rank in range(world_size)]
    while len(sums) > 1:
        sums = [one + other for one, other in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0].bfloat16()


def check_sum(graph: torch.cuda.CUDAGraph, name: str, y: torch.Tensor, expected: torch.Tensor) -> None:
    """A way may be timed only after it agrees: to the bit in full precision, within the codec's coarseness else."""
    dist.barrier(cpu_group())
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    codec = next((codec for codec in CODED if codec in name), None)
    tolerance = {None: 0.0, "int8": 0.02, "int6": 0.08, "int4": 0.4}[codec]
    error = ((y.float() - expected.float()).norm() / expected.float().norm()).item()
    if not (torch.equal(y, expected) if codec is None else error < tolerance):
        raise RuntimeError(f"{name}, {y.nbytes} bytes: relative error {error}")


def capture(way: Way, num_calls: int, warm: bool) -> torch.cuda.CUDAGraph:
    if warm:
        way()
        torch.cuda.synchronize()
    dist.barrier(cpu_group())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(num_calls):
            way()
    return graph


def replay(graph: torch.cuda.CUDAGraph, num_calls: int, times: int = 8) -> list[float]:
    """Microseconds a call, for each replay; the first only brings the ranks together."""
    torch.cuda.synchronize()
    dist.barrier(cpu_group())
    events = [new_event() for _ in range(times + 2)]
    graph.replay()
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    return [1e3 * begin.elapsed_time(end) / num_calls for begin, end in itertools.pairwise(events)]


def new_event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def link_bandwidth(rank: int, world_size: int) -> dict[str, float]:
    """GB/s that this rank's copy engine writes to the next GPU: alone, and while all do."""
    source = torch.randn(64 * MIB, device="cuda")
    target = torch.empty(64 * MIB, device=f"cuda:{(rank + 1) % world_size}")
    found = {}
    for name, is_writing in (("one_way_gb_s", rank == 0), ("both_ways_gb_s", True)):
        dist.barrier(cpu_group())
        times = []
        for _ in range(20 if is_writing else 0):
            begin, end = (new_event() for _ in range(2))
            begin.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        if is_writing:
            found[name] = round(source.nbytes / 1e6 / statistics.median(times), 1)
    dist.barrier(cpu_group())
    return found


if __name__ == "__main__":
    main()
