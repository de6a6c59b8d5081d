"""The all-reduce between a decode step's own kernels on two GPUs, early starts off and on: JSON lines, one a row count.

    python scripts/bench_all_reduce_chain.py --output results.jsonl [--rows 1 32 256] [--layers 40]

A layer is sum of parts, all-reduce, residual add with norm, and in_proj of Qwen3.5-35B-A3B at tp=2. All layers are one
CUDA graph; the graphs of both ways have the same bits (checked first) and are replayed in turn. Microseconds a layer:
median over the replays, of the slower rank. ``late``: as it was before, at one row with a
copy of the only part; ``bare``: without the all-reduce.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_all_reduce_gpu import Quick, capture, describe_machine, gather, replay, report

from splitrank.comm.native import load_module
from splitrank.models.ops.gpu.norm import add_norm, sum_parts
from splitrank.models.ops.gpu.operations import gpu_name
from splitrank.models.ops.gpu.projection import add_norm_project, project
from splitrank.models.ops.gpu.tiles import TileTable, load_tiles

HIDDEN, IN_PROJ, PARTS, EPS = 2048, 12352 // 2, 9, 1e-6
WEIGHTS = 8  # more bytes than the L2 cache has
WAYS = {"bare": None, "late": False, "early": True}


class Chain:
    """Buffers of ``rows`` rows; ``run`` enqueues all layers."""

    def __init__(self, rows: int, layers: int, rank: int, tiles: TileTable) -> None:
        generator = torch.Generator("cuda").manual_seed(rank)

        def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device="cuda").mul(scale).bfloat16()

        self.layers, self.tiles = layers, tiles
        self.parts = random(rows, 1 if rows == 1 else PARTS, HIDDEN)
        self.summed = torch.empty_like(self.parts[:, 0])
        self.weights = [random(IN_PROJ, HIDDEN, scale=0.02) for _ in range(WEIGHTS)]
        self.norm_weight = torch.zeros(HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.residual, self.normed = torch.zeros_like(self.summed), torch.empty_like(self.summed)
        self.projected = self.summed.new_empty(rows, IN_PROJ)

    def run(self, quick: Quick, starts_early: bool | None) -> None:
        self.residual.zero_()
        for layer in range(self.layers):
            source = self._sum(always=starts_early is False)
            if starts_early is not None:
                quick.all_reduce(source, self.summed, "tagged", starts_early=starts_early)
            self._norm_and_project(self.weights[layer % WEIGHTS])

    def _sum(self, always: bool) -> torch.Tensor:
        """Of one part alone it is a copy, which was made before early starts were."""
        if not always and self.parts.shape[1] == 1:
            return self.parts[:, 0]
        sum_parts(self.parts, self.summed, self.tiles.tile("add_norm", len(self.parts)))
        return self.summed

    def _norm_and_project(self, weight: torch.Tensor) -> None:
        rows, parts = len(self.parts), self.summed[:, None]
        tile = self.tiles.tile("in_proj", rows)
        norm = self.residual, parts, self.norm_weight
        if rows == 1 and tile.form == "fma":
            residual = torch.empty_like(self.residual)
            add_norm_project(*norm, weight, self.projected, residual, self.normed, EPS, tile)
            self.residual = residual
            return
        add_norm(*norm, self.residual, self.normed, EPS, self.tiles.tile("add_norm", rows))
        project(self.normed, weight, self.projected, tile)


def measure(rows: int, rank: int, quick: Quick, tiles: TileTable, options: argparse.Namespace) -> dict[str, Any]:
    graphs, results, chains = {}, {}, []
    for name, starts_early in WAYS.items():
        chain = Chain(rows, options.layers, rank, tiles)
        chains.append(chain)
        graphs[name] = capture(partial(chain.run, quick, starts_early), 1, warm=True)
        graphs[name].replay()
        torch.cuda.synchronize()
        results[name] = chain.residual.clone(), chain.normed.clone(), chain.projected.clone()
    for late, early in zip(results["late"], results["early"], strict=True):
        if not torch.equal(late, early):
            raise RuntimeError(f"{rows} rows, rank {rank}: {int((late != early).sum())} elements differ")
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, graph in graphs.items():
            times[name] += replay(graph, options.layers)
    quick.check()
    slower = {name: max(gather(statistics.median(values))) for name, values in times.items()}
    rounded = {name: round(value, 2) for name, value in slower.items()}
    return {"rows": rows, "us_a_layer": rounded, "late_over_early": round(slower["late"] / slower["early"], 3)}


def run_rank(rank: int, world_size: int, rendezvous: str, options: argparse.Namespace) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    quick = Quick(load_module("cuda"), rank, world_size)
    report(rank, options, describe_machine(world_size, {"": quick}, options))
    tiles = load_tiles(gpu_name(torch.device("cuda", rank)))
    for rows in options.rows:
        report(rank, options, measure(rows, rank, quick, tiles, options))
    quick.close()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    options.command = f"python scripts/bench_all_reduce_chain.py --rows {' '.join(map(str, options.rows))}"
    with tempfile.TemporaryDirectory() as folder:
        spawn: Any = mp.spawn  # type: ignore[attr-defined]
        spawn(run_rank, (2, f"{folder}/rendezvous", options), nprocs=2)


if __name__ == "__main__":
    main()
