"""Engine against ``transformers.generate`` in one run, as ratios; JSON lines on stdout.

    python scripts/bench_engine.py [--shape S] [--dtypes bfloat16 float32] [--rounds 3] [--threads 2]
                                   [--only tensor | sampled]

Workloads: decode of 1 and of 8 equal requests, prefill of 512 tokens, and a queue of 32 requests with 16 to 256 output
tokens, eight running (``transformers`` has no continuous batching for this model: four static batches, each as long as
its longest). Then sampled decode (temperature 0.6, top-k 20, top-p 0.95) against greedy (``--only sampled``: this
alone; ``--shape V`` has the real vocabulary); pp=2 with one thread a stage against pp=1 with two threads, 16 requests;
and decode at tp=2 with the quick all-reduce against gloo (``--only tensor``). Rounds are interleaved.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_profile import expert_floor, profile_decode, read_bandwidth
from bench_shapes import SHAPES, random_model, write_text_checkpoint

from splitrank.models.torch_dtype import torch_dtype
from splitrank.serving.bench import GREEDY, Job, measure, random_jobs
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.sampling_params import SamplingParams

NUM_RUNNING = 8
SAMPLED = SamplingParams(temperature=0.6, top_k=20, top_p=0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S", choices=sorted(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["tensor", "sampled"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in args.dtypes:
        bench = {"tensor": bench_tensor_alone, "sampled": bench_sampled_alone}.get(args.only, bench_dtype)
        asyncio.run(bench(args.shape, dtype, args.rounds, args.threads))


def emit(**fields: object) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


async def bench_dtype(shape: str, dtype: str, rounds: int, threads: int) -> None:
    """All workloads in one dtype."""
    model = random_model(shape, torch_dtype(dtype))
    with tempfile.TemporaryDirectory() as folder:
        write_text_checkpoint(model, Path(folder))
        base = EngineConfig(model=folder, dtype=dtype, max_model_len=1024, prefix_cache_mib=0, threads_per_rank=threads)
        await bench_against_transformers(model, base, {"shape": shape, "dtype": dtype}, rounds)
        del model
        await bench_sampled(base, {"shape": shape, "dtype": dtype}, rounds)
        await bench_pipeline(folder, dtype, {"shape": shape, "dtype": dtype}, rounds)
        await bench_tensor(folder, dtype, {"shape": shape, "dtype": dtype}, rounds)
        emit(what="where the time goes", shape=shape, dtype=dtype, **profile_decode(folder, dtype, threads))


def workloads(vocab_size: int) -> dict[str, list[Job]]:
    """Jobs by workload name."""
    draw = random.Random(1)
    queue = [draw.randint(16, 256) for _ in range(32)]
    return {
        "decode, 1 request": random_jobs(vocab_size, 16, [128]),
        "decode, 8 requests": random_jobs(vocab_size, 16, [128] * 8),
        "prefill of 512": random_jobs(vocab_size, 512, [1]),
        "queue of 32, 8 running": random_jobs(vocab_size, 16, queue),
    }


async def bench_against_transformers(model: Any, config: EngineConfig, labels: dict[str, str], rounds: int) -> None:
    """Alternates engine and peer, workload by workload."""
    spec = resolve_launch(replace(config, max_running_requests=NUM_RUNNING))
    client = await EngineClient.start(spec)
    try:
        for name, jobs in workloads(spec.vocab_size).items():
            # Prefill is short: more rounds for a stable median. The queue is long, and warm from the workloads before.
            count = 5 * rounds if "prefill" in name else 1 if "queue" in name else rounds
            run_engine, run_peer = partial(engine_seconds, client, jobs), partial(peer_seconds, model, jobs)
            engine, peer = await alternate(run_engine, run_peer, count)
            tokens = sum(job.output_tokens for job in jobs) if "prefill" not in name else 512
            emit(
                what=name,
                **labels,
                engine_tokens_per_s=round(tokens / engine, 1),
                transformers_tokens_per_s=round(tokens / peer, 1),
                ratio=round(peer / engine, 2),
                read_gb_per_s=round(read_bandwidth(), 1),
            )
    finally:
        await client.close()


async def alternate(
    first: Callable[[], Awaitable[float]], second: Callable[[], Awaitable[float]], rounds: int
) -> tuple[float, float]:
    """Medians of two measurements taken in turn, after one warm-up each (none for a single round)."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + (rounds > 1)):
        for measured, run in zip(times, (first, second), strict=True):
            seconds = await run()
            if number or rounds == 1:
                measured.append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


async def engine_seconds(client: EngineClient, jobs: list[Job], params: SamplingParams = GREEDY) -> float:
    return (await measure(client, jobs, params)).seconds


@torch.inference_mode()
def generate(model: Any, jobs: list[Job]) -> None:
    """A static batch, as long as its longest job."""
    longest = max(job.output_tokens for job in jobs)
    prompts = torch.tensor([job.prompt for job in jobs])
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=longest,
        min_new_tokens=longest,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert out.shape[1] == prompts.shape[1] + longest, out.shape


async def peer_seconds(model: Any, jobs: list[Job]) -> float:
    began = time.perf_counter()
    for start in range(0, len(jobs), NUM_RUNNING):
        generate(model, jobs[start : start + NUM_RUNNING])
    return time.perf_counter() - began


async def bench_sampled_alone(shape: str, dtype: str, rounds: int, threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_text_checkpoint(random_model(shape, torch_dtype(dtype)), Path(folder))
        base = EngineConfig(model=folder, dtype=dtype, max_model_len=1024, prefix_cache_mib=0, threads_per_rank=threads)
        await bench_sampled(base, {"shape": shape, "dtype": dtype}, rounds)


async def bench_sampled(config: EngineConfig, labels: dict[str, str], rounds: int) -> None:
    """Decode of 1 and of 8 requests with the sampling that Qwen recommends against greedy, on one engine."""
    spec = resolve_launch(replace(config, max_running_requests=NUM_RUNNING))
    client = await EngineClient.start(spec)
    try:
        for requests in (1, NUM_RUNNING):
            jobs = random_jobs(spec.vocab_size, 16, [64] * requests)
            sampled, greedy = await alternate(
                partial(engine_seconds, client, jobs, SAMPLED), partial(engine_seconds, client, jobs), rounds
            )
            emit(
                what=f"sampled decode of {requests} against greedy",
                **labels,
                vocab_size=spec.vocab_size,
                sampled_tokens_per_s=round(requests * 64 / sampled, 1),
                greedy_tokens_per_s=round(requests * 64 / greedy, 1),
                ratio=round(greedy / sampled, 2),
            )
    finally:
        await client.close()


async def bench_pipeline(folder: str, dtype: str, labels: dict[str, str], rounds: int) -> None:
    """pp=2 with one thread a stage against pp=1 with two threads: 16 requests, 64 tokens each."""
    common = EngineConfig(model=folder, dtype=dtype, max_model_len=1024, prefix_cache_mib=0, max_running_requests=16)
    one = await EngineClient.start(resolve_launch(replace(common, pp=1, threads_per_rank=2)))
    two = await EngineClient.start(resolve_launch(replace(common, pp=2, threads_per_rank=1)))
    try:
        jobs = random_jobs(8192, 16, [64] * 16)
        pp1, pp2 = await alternate(partial(engine_seconds, one, jobs), partial(engine_seconds, two, jobs), rounds)
        emit(
            what="pp=2 x 1 thread against pp=1 x 2 threads, 16 requests",
            **labels,
            pp2_tokens_per_s=round(16 * 64 / pp2, 1),
            pp1_tokens_per_s=round(16 * 64 / pp1, 1),
            ratio=round(pp1 / pp2, 2),
            **expert_floor(folder),
        )
    finally:
        await one.close()
        await two.close()


async def bench_tensor_alone(shape: str, dtype: str, rounds: int, threads: int) -> None:
    """Of the machine's threads, each tensor rank gets one, whatever ``threads`` says."""
    with tempfile.TemporaryDirectory() as folder:
        write_text_checkpoint(random_model(shape, torch_dtype(dtype)), Path(folder))
        await bench_tensor(folder, dtype, {"shape": shape, "dtype": dtype}, rounds)


async def bench_tensor(folder: str, dtype: str, labels: dict[str, str], rounds: int) -> None:
    """tp=2, one thread a rank: decode of 1 and of 8 requests with the quick all-reduce and with gloo."""
    config = EngineConfig(model=folder, dtype=dtype, max_model_len=1024, prefix_cache_mib=0, tp=2, threads_per_rank=1)
    quick = await EngineClient.start(resolve_launch(replace(config, all_reduce="quick")))
    gloo = await EngineClient.start(resolve_launch(replace(config, all_reduce="torch")))
    try:
        for requests in (1, 8):
            jobs = random_jobs(8192, 16, [64] * requests)
            one, other = await alternate(
                partial(engine_seconds, quick, jobs), partial(engine_seconds, gloo, jobs), rounds
            )
            emit(
                what=f"tp=2, decode of {requests}, quick all-reduce against gloo",
                **labels,
                quick_tokens_per_s=round(requests * 64 / one, 1),
                gloo_tokens_per_s=round(requests * 64 / other, 1),
                ratio=round(other / one, 2),
            )
    finally:
        await quick.close()
        await gloo.close()


if __name__ == "__main__":
    main()
