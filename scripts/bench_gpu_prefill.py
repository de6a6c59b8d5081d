"""Prefill of the 35B shape on one GPU: a step of 8,192 tokens, 40 layers, dummy weights; and each part alone.

    python scripts/bench_gpu_prefill.py [--shapes 4x2048 16x512] [--parts NAME ...] [--commit HASH]

JSON lines on stdout: the card's two ceilings, then each part (microseconds a call and a step, share of its bound: the
larger of operations and bytes over the ceilings), then the step as one graph and launch by launch from the host.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from prefill_step import Step

from splitrank.models.ops.gpu.tiles import load_tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4x2048", "16x512"], help="sequences x tokens of each")
    parser.add_argument("--parts", nargs="*", help="only these parts; without a name: none")
    parser.add_argument("--commit", help="what is measured, if this is no git checkout")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    device = torch.device("cuda", torch.cuda.current_device())
    card = torch.cuda.get_device_name(device)
    common = {"card": card, "commit": args.commit or git_commit(), "date": date.today().isoformat()}
    tiles = load_tiles(card)
    flops_us, bytes_us = ceilings(device)
    emit(
        common, what="ceilings", tflops=round(flops_us / 1e6, 1), tb_per_s=round(bytes_us / 1e6, 2), tiles=tiles.source
    )
    for shape in args.shapes:
        count, length = map(int, shape.split("x"))
        step = Step(count, length, tiles, device)
        for name, part in step.table().items():
            if args.parts is not None and name not in args.parts:
                continue
            us = graph_us(rotated(step, part.run, 6)) / 6
            bound = max(part.flops / flops_us, part.num_bytes / bytes_us)
            emit(
                common,
                shape=shape,
                part=name,
                us=round(us, 1),
                calls=part.calls,
                ms_a_step=round(us * part.calls / 1e3, 2),
                of_bound=round(bound / us, 3),
                tflops=round(part.flops / us / 1e6, 1),
                tb_per_s=round(part.num_bytes / us / 1e6, 2),
            )
        whole(common, shape, step)
        del step


def git_commit() -> str:
    folder = Path(__file__).parent
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def emit(common: dict[str, str], **fields: object) -> None:
    """One JSON line."""
    print(json.dumps(common | fields), flush=True)


def whole(common: dict[str, str], shape: str, step: Step) -> None:
    """The step as one graph, twice, since the card warms; then launched from the host."""
    for turn in (1, 2):
        us = graph_us(step.layers, replays=12)
        finite = bool(step.residual.isfinite().all())
        emit(
            common, shape=shape, what="step", turn=turn, ms=round(us / 1e3, 2), tok_per_s=round(step.rows / us * 1e6),
            finite=finite,
        )  # fmt: skip
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step.layers()
    launched = time.perf_counter() - begin
    torch.cuda.synchronize()
    done = time.perf_counter() - begin
    emit(common, shape=shape, what="step from the host", host_ms=round(launched * 1e3, 1), ms=round(done * 1e3, 1))


def rotated(step: Step, run: Callable[[], object], count: int) -> Callable[[], None]:
    """``count`` calls of a part, the sets of weights in turn."""

    def calls() -> None:
        for step.layer in range(count):
            run()
        step.layer = 0

    return calls


def graph_us(run: Callable[[], object], replays: int = 20) -> float:
    """Median time of a graph of ``run``, by device events."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    times = []
    for _ in range(replays + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return float(statistics.median(times[2:]))


def ceilings(device: torch.device) -> tuple[float, float]:
    """Operations a microsecond of a large bf16 product, and bytes a microsecond of a large copy (read and written)."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = graph_us(lambda: torch.mm(a, b), replays=8)
    x = torch.empty(2**31, dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    times = []
    for _ in range(8):
        begin.record()
        y.copy_(x)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return 2 * 8192**3 / product, 2 * x.nbytes / statistics.median(times)


if __name__ == "__main__":
    main()
