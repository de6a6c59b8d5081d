"""A whole decode step of Qwen3.5-35B-A3B from the GPU kernels, as one CUDA graph with dummy weights: JSON lines.

    python scripts/bench_gpu_kernels.py --output results.jsonl [--rows 1 8 ...] [--context 256] [--layers 40]

No engine and no host work. A line of the memory's speed (read, copy), then one for each batch size: microseconds a step
(median of replays), with and without programmatic dependent launch; bytes that the step cannot avoid, and their share
of the read speed; experts touched a layer; and time by launch, from a profile of one replay without early starts.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from decode_chain import Sampling, Shape, State, Step, Weights
from torch.profiler import ProfilerActivity, profile

from splitrank.models.ops.gpu.launch import noted_launches
from splitrank.models.ops.gpu.tiles import TileTable, load_tiles

GB = 1e9


@triton.jit  # type: ignore[untyped-decorator]
def _read(x, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + at), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _copy(x, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


def graph_of(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Runs once, which compiles, then captures."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, limit_s: float = 0.6, most: int = 60) -> float:
    """Median of replays, after two."""
    times: list[float] = []
    begin = time.monotonic()
    for count in range(most + 2):
        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        events[0].record()
        graph.replay()
        events[1].record()
        events[1].synchronize()
        if count >= 2:
            times.append(events[0].elapsed_time(events[1]) * 1e3)
        if len(times) >= 5 and time.monotonic() - begin > limit_s:
            break
    return statistics.median(times)


def memory_speed() -> dict[str, float]:
    """Bytes a second, read alone and copied (read and written counted), with own kernels: torch's copy is slower."""
    count, block = 2**30, 4096
    x = torch.randint(-5, 5, (count,), dtype=torch.int32, device="cuda")
    out = torch.empty(count // 2, dtype=torch.int32, device="cuda")
    reading = graph_of(lambda: _read[(count // block,)](x, out, block, num_warps=8))
    copying = graph_of(lambda: _copy[(count // 2 // block,)](x, out, block, num_warps=8))
    return {"read": x.nbytes / replay_us(reading) * 1e6, "copy": 2 * out.nbytes / replay_us(copying) * 1e6}


def needed_bytes(shape: Shape, rows: int, context: int, touched: float) -> dict[str, float]:
    """What one launch of each name must read and write."""
    s, width = shape, 2
    expert = 3 * s.hidden * s.inner * width
    shared = s.hidden * s.shared * width
    places, updates = s.pending  # half of which a step reads on average; it writes one, or with one row of 8 the state
    state = s.value_heads * s.key_dim * s.value_dim * (1 + 1 / (places + 1)) + updates * (places / 2 + 1)
    return {
        "in_proj": s.in_rows * s.hidden * width,
        "qkv_proj": s.qkv_rows * s.hidden * width,
        "out_proj": s.hidden * s.value_heads * s.value_dim * width,
        "o_proj": s.hidden * s.heads * s.head_dim * width,
        "router": s.router_rows * s.hidden * width,
        "delta_step": rows * state * 4,
        "attention_decode": rows * context * 2 * s.kv_heads * s.head_dim * width,
        "experts_up": touched * expert * 2 / 3,
        "experts_down": touched * expert / 3 + shared,
        "head": s.vocabulary * s.hidden * width,
    }


def launches(step: Step) -> list[str]:
    """The names of a step's launches in their order, as the table has them; two of one name have a number."""
    names = {id(tile): name for name, tile in step.tiles.items()}
    with noted_launches() as calls:
        step()
    many = ("add_norm", "route", "attention_decode")
    found = [(call.name, names.get(id(call.tile), call.name)) for call in calls]
    return [kernel if name in many else name for kernel, name in found]


def time_by_launch(graph: torch.cuda.CUDAGraph, names: list[str]) -> dict[str, tuple[int, float]]:
    """How often, and microseconds in all, of each launch in one replay."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        graph.replay()
        torch.cuda.synchronize()
    events: list[Any] = [event for event in profiler.events() or () if event.device_type.name == "CUDA"]
    kernels = sorted(events, key=lambda event: event.time_range.start)
    if len(kernels) != len(names):
        print(f"bench_gpu_kernels: {len(kernels)} kernels in the profile, {len(names)} launches", file=sys.stderr)
        return {}
    times: dict[str, tuple[int, float]] = {}
    for name, kernel in zip(names, kernels, strict=True):
        count, total = times.get(name, (0, 0.0))
        times[name] = count + 1, total + kernel.time_range.elapsed_us()
    return times


def without_early_starts(table: TileTable) -> TileTable:
    ranges = {name: tuple((up, replace(tile, pdl=False)) for up, tile in rows) for name, rows in table.ranges.items()}
    return replace(table, ranges=type(table.ranges)(ranges))


def bench(
    shape: Shape, weights: Weights, rows: int, context: int, table: TileTable, speed: dict[str, float]
) -> dict[str, Any]:
    state = State(shape, rows, context, 64, torch.device("cuda"), torch.bfloat16)
    step = Step(shape, weights, state, rows, table)
    step.experts_touched = None if step.one_row else []
    step()
    touched = statistics.mean(step.experts_touched) if step.experts_touched else float(shape.top_k)
    step.experts_touched = None
    us = replay_us(graph_of(step))
    plain = Step(shape, weights, state, rows, without_early_starts(table))
    plain_graph = graph_of(plain)
    plain_us = replay_us(plain_graph)
    each, parts = needed_bytes(shape, rows, context, touched), time_by_launch(plain_graph, launches(plain))
    total = sum(each[name] * count for name, (count, _) in parts.items() if name in each)
    by_launch = {
        name: {"count": count, "us": round(spent, 1), "us_each": round(spent / count, 2)}
        | ({"share_of_read": round(each[name] * count / spent * 1e6 / speed["read"], 3)} if name in each else {})
        for name, (count, spent) in sorted(parts.items(), key=lambda item: -item[1][1])
    }
    return {
        "rows": rows,
        "context": context,
        "us": round(us, 1),
        "us_without_early_starts": round(plain_us, 1),
        "tokens_per_s": round(rows / us * 1e6, 1),
        "experts_touched": round(touched, 1),
        "gigabytes": round(total / GB, 3),
        "share_of_read": round(total / us * 1e6 / speed["read"], 3),
        "launches": len(launches(plain)),
        "by_launch": by_launch,
        "sampling_us": sampling_us(shape, rows),
    }


def sampling_us(shape: Shape, rows: int) -> dict[str, float]:
    """Microseconds of the sampler alone, from logits in memory: the usual filters, and two that walk the vocabulary."""
    ways = {
        "greedy": (0.0, 0, 1.0),
        "top_k 20, top_p 0.95": (0.6, 20, 0.95),
        "top_p 0.9": (1.0, 0, 0.9),
        "none": (1.0, 0, 1.0),
    }
    device = torch.device("cuda")
    return {name: round(replay_us(graph_of(Sampling(shape, rows, device, *way))), 1) for name, way in ways.items()}


def main() -> None:
    args = _arguments()
    shape, table = Shape(num_layers=args.layers), load_tiles(torch.cuda.get_device_name())
    if table.note:
        print(table.note, file=sys.stderr)
    common = {
        "card": torch.cuda.get_device_name(),
        "commit": args.commit or _commit(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    torch.manual_seed(0)
    speed = memory_speed()
    _write(args.output, common | {"terabytes_per_s": {name: round(value / 1e12, 3) for name, value in speed.items()}})
    torch.cuda.empty_cache()
    weights = Weights(shape, torch.device("cuda"), torch.bfloat16, args.layers)
    for rows in args.rows:
        _write(args.output, common | bench(shape, weights, rows, args.context, table, speed))
        torch.cuda.empty_cache()


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _write(file: Path | None, line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    if file:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 64, 128, 256], help="batch sizes")
    parser.add_argument("--context", type=int, default=256, help="tokens before the one that is computed")
    parser.add_argument("--layers", type=int, default=40, help="fewer where memory is short")
    parser.add_argument("--commit", help="of the code; default: asked of git")
    parser.add_argument("--output", type=Path, help="also append the lines to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
