"""The CPU's operations, verb by verb: own kernels (``--exact on``) against torch's (``off``). JSON lines on stdout.

    python scripts/bench_cpu_ops.py [--shape S] [--dtype bfloat16] [--threads 2] [--rounds 3]

One rank of each kind in this process, without engine and messages, on dummy weights; they take turns. ``wall_ms`` and
``cpu_ms`` (of all threads, which a busy machine changes less) are medians of a whole step. A verb has the bytes of
weights that it reads, its multiply-adds, and ``floor_share``: the time that the machine's reading speed and arithmetic
allow, both measured before, over the time taken.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from bench_profile import read_bandwidth, time_verbs
from bench_shapes import SHAPES, text_config

from splitrank import _cpu_ops as cpu_ops
from splitrank.models.config import FULL, ModelConfig
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.ops.cpu.exact import ExactOperations
from splitrank.models.sharding import TensorShard
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import AdmittedRequest, ChunkPlan, NewPages, StepPlan
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.worker import Worker

STEPS, PROMPT = 16, 512
GREEDY = SamplingParams(temperature=0.0, max_tokens=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S", choices=sorted(SHAPES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speeds = {"read_gb_per_s": read_bandwidth(), "gflop_per_s": multiply_speed()}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(text_config(args.shape, args.dtype).to_dict()))
        ranks = {exact: Rank(folder, exact, args) for exact in ("on", "off")}
        instructions = cpu_ops.instruction_sets()[-1]
        emit(what="machine", instructions=instructions, threads=args.threads, **rounded(speeds))
        for name, rows in (("decode of 1", 1), ("decode of 8", 8), (f"prefill of {PROMPT}", PROMPT)):
            compare(name, rows, ranks, args, speeds)


def emit(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 2) for name, number in numbers.items()}


def multiply_speed() -> float:
    """GFLOP/s of a product of float32 matrices by torch, the best of five."""
    a = torch.ones(1024, 1024)
    return max(2 * 1024**3 / 1e9 / seconds for seconds in (timed(lambda: a @ a) for _ in range(5)))


def timed(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


class Rank:
    """A worker whose steps are planned here; verbs are timed."""

    def __init__(self, folder: str, exact: str, args: argparse.Namespace) -> None:
        config = EngineConfig(model=folder, dtype=args.dtype, exact=exact, load_format="dummy", device="cpu",
                              threads_per_rank=args.threads, max_model_len=1024, max_running_requests=9)  # fmt: skip
        self.worker = Worker(resolve_launch(config), rank=0)
        self.worker.load()
        self.num_threads = 1 if exact == "on" else args.threads  # torch's
        self._cores = sorted(os.sched_getaffinity(0))
        if isinstance(self.worker.ops, ExactOperations):
            self.worker.ops.native.pin(self._cores[: args.threads])
            os.sched_setaffinity(0, self._cores)
        self.spent: dict[str, float] = defaultdict(float)
        time_verbs(self.worker.ops, self.spent)
        self._step = 0
        self.execute(
            admitted=[AdmittedRequest(slot, slot, [slot * 7], GREEDY, start=0) for slot in range(8)],
            pages=[NewPages(slot, [slot]) for slot in range(8)],
            chunks=[ChunkPlan(slot, 1, sample=True) for slot in range(8)],
        )

    def execute(self, **parts: Any) -> None:
        self.worker.execute(StepPlan(self._step, "", **parts), "")
        self._step += 1

    def run(self, rows: int) -> None:
        """One step."""
        torch.set_num_threads(self.num_threads)
        os.sched_setaffinity(0, self._cores[:1] if self.num_threads == 1 else self._cores)  # torch's are not pinned
        if rows < PROMPT:
            self.execute(decodes=list(range(rows)))
            return
        prompt = [token % 4000 for token in range(PROMPT)]
        self.execute(
            admitted=[AdmittedRequest(8, 8, prompt, GREEDY, start=0)],
            pages=[NewPages(8, list(range(8, 16)))],
            chunks=[ChunkPlan(8, PROMPT, sample=True)],
        )
        self.execute(released=[8])


def compare(name: str, rows: int, ranks: dict[str, Rank], args: argparse.Namespace, speeds: dict[str, float]) -> None:
    steps = 1 if rows == PROMPT else STEPS // 4
    walls, cpus = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for round_number in range(args.rounds + 1):
        for exact, rank in ranks.items():
            if round_number == 1:
                rank.spent.clear()
            for _ in range(steps):
                cpu = time.process_time()
                walls[exact].append(timed(lambda rank=rank: rank.run(rows)))
                cpus[exact].append(time.process_time() - cpu)
    medians = {exact: statistics.median(walls[exact][steps:]) for exact in ranks}
    for exact, rank in ranks.items():
        cpu_ms = 1e3 * statistics.median(cpus[exact][steps:])
        ratio = medians["off"] / medians[exact]
        wall_ms = 1e3 * medians[exact]
        emit(what=name, exact=exact, **rounded({"wall_ms": wall_ms, "cpu_ms": cpu_ms, "times_off": ratio}))
        for verb, seconds in rank.spent.items():
            num_bytes, operations = costs(rank.worker.config, verb, rows, args.dtype)
            ms = 1e3 * seconds / (args.rounds * steps)
            floor_ms = 1e3 * max(num_bytes / 1e9 / speeds["read_gb_per_s"], operations / 1e9 / speeds["gflop_per_s"])
            fields = {"ms": ms, "mb": num_bytes / 1e6, "gflop": operations / 1e9, "floor_share": floor_ms / ms}
            emit(what=name, exact=exact, verb=verb, **rounded(fields))


def costs(config: ModelConfig, verb: str, rows: int, dtype: str) -> tuple[float, float]:
    """Bytes of weights and floating-point operations of a verb in all layers of a step; (0, 0) where there are none."""
    shapes, hidden = LayerShapes.of(config, TensorShard(0, 1)), config.hidden_size
    num_full = config.layer_types.count(FULL)
    num_linear = config.num_hidden_layers - num_full
    expert, shared = (3 * hidden * inner for inner in (config.moe_intermediate_size, shapes.shared_inner[1]))
    touched = config.num_experts * (1 - (1 - config.num_experts_per_tok / config.num_experts) ** rows)
    router = hidden * (config.num_experts + 1) + shared
    weights = {
        "add_norm_project": num_full * sum(shapes.qkv_widths) * hidden + num_linear * sum(shapes.delta_widths) * hidden,
        "norm_gate_project": num_linear * shapes.value_dim * hidden,
        "project": num_full * shapes.num_heads * config.head_dim * hidden,
        "experts": config.num_hidden_layers * (touched * expert + router),
    }
    products = weights | {"experts": config.num_hidden_layers * (config.num_experts_per_tok * expert + router)}
    item = 2 if dtype == "bfloat16" else 4
    if verb == "head":  # of the sampled rows alone
        elements = config.vocab_size * hidden
        return item * elements, 2 * elements * (1 if rows == PROMPT else rows)
    return item * weights.get(verb, 0), 2 * rows * products.get(verb, 0)


if __name__ == "__main__":
    main()
