"""The whole engine on a GPU at the shape of Qwen3.5-35B-A3B in bf16, with dummy weights; JSON lines on stdout.

    python scripts/bench_gpu.py [--batches 1 8 32 128 256] [--output rows.jsonl] [any option of ``splitrank bench``]

Decode: a batch of equal requests of 128 prompt tokens; tokens a second from the time of 256 tokens less the time of
one, so that prefill cancels out. Prefill: 16 prompts of 2,048 tokens with one token each; with ``--prompts 64`` a queue
that is long enough to fill two stages. Greedy, medians. The same workloads as those that vLLM is measured with
(``configs/README.md``).
"""

import argparse
import asyncio
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

from splitrank.serving.bench import measure, random_jobs
from splitrank.serving.launch.devices import probe
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import LaunchSpec

PROMPT, OUTPUT = 128, 256
PREFILL = 2048
ROPE = {"rope_type": "default", "rope_theta": 1e7, "mrope_interleaved": True, "mrope_section": [11, 11, 10]}


def config_35b(layers: int = 40) -> dict[str, Any]:
    """``config.json`` of Qwen3.5-35B-A3B, text alone (its model card)."""
    kinds = ["full_attention" if number % 4 == 0 else "linear_attention" for number in range(1, layers + 1)]
    return {
        "model_type": "qwen3_5_moe_text",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25},
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 248320,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "eos_token_id": 248044,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 128, 256])
    parser.add_argument("--prompts", type=int, nargs="*", default=[16], help="prefill: prompts at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--stage-link", default="auto")
    parser.add_argument("--prompt-graphs", default="auto")
    parser.add_argument("--exact", default="auto", help="on: what the exact mode costs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config_35b(args.layers)))
        config = EngineConfig(
            model=folder, load_format="dummy", device="cuda", max_model_len=4096, prefix_cache_mib=0,
            pp=args.pp, tp=args.tp, max_running_requests=max([*args.batches, 1]), share_devices=True,
            stage_link=args.stage_link, exact=args.exact, prompt_graphs=args.prompt_graphs,
        )  # fmt: skip
        output = args.output.open("a") if args.output else None
        asyncio.run(bench(config, args, Rows(output, labels(args))))


class Rows:
    """Prints each row, and writes it to a file."""

    def __init__(self, output: TextIO | None, common: dict[str, Any]) -> None:
        self._output, self._common = output, common

    def emit(self, **fields: Any) -> None:
        line = json.dumps(self._common | fields)
        print(line, flush=True)
        if self._output:
            print(line, file=self._output, flush=True)


def labels(args: argparse.Namespace) -> dict[str, Any]:
    gpus = probe()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "engine": "splitrank",
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "card": gpus if isinstance(gpus, str) else gpus[0].name,
        "layers": args.layers,
        "layout": f"tp {args.tp} x pp {args.pp}",
        "stage_link": args.stage_link,
        "prompt_graphs": args.prompt_graphs,
        "exact": args.exact == "on",
    }


async def bench(config: EngineConfig, args: argparse.Namespace, rows: Rows) -> None:
    began = time.perf_counter()
    spec = resolve_launch(config)
    client = await EngineClient.start(spec)
    try:
        rows.emit(what="ready", seconds=round(time.perf_counter() - began, 1))
        for report in client.reports:
            print(report, file=sys.stderr)
        for batch in args.batches:
            await bench_decode(client, spec, batch, args.repeats, rows)
        for count in args.prompts:
            await bench_prefill(client, spec, count, args.repeats, rows)
    finally:
        await client.close()


async def bench_decode(client: EngineClient, spec: LaunchSpec, batch: int, repeats: int, rows: Rows) -> None:
    seconds = {}
    for tokens in (1, OUTPUT):
        jobs = random_jobs(spec.vocab_size, PROMPT, [tokens] * batch, seed=batch)
        await measure(client, jobs)  # warm-up
        seconds[tokens] = statistics.median([(await measure(client, jobs)).seconds for _ in range(repeats)])
    step = (seconds[OUTPUT] - seconds[1]) / (OUTPUT - 1)
    rows.emit(
        what="decode",
        batch=batch,
        tokens_per_s=round(batch / step, 1),
        ms_a_step=round(step * 1e3, 3),
        ms_to_first_token=round(seconds[1] * 1e3, 1),
    )


async def bench_prefill(client: EngineClient, spec: LaunchSpec, count: int, repeats: int, rows: Rows) -> None:
    jobs = random_jobs(spec.vocab_size, PREFILL, [1] * count)
    await measure(client, jobs)  # warm-up
    seconds = statistics.median([(await measure(client, jobs)).seconds for _ in range(repeats)])
    rows.emit(what="prefill", prompts=count, tokens=PREFILL, tokens_per_s=round(count * PREFILL / seconds))


if __name__ == "__main__":
    main()
