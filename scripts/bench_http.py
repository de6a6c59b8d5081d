"""Throughput and first tokens through HTTP against the engine alone, in turns; JSON lines on stdout.

    python scripts/bench_http.py [--shape S] [--requests 8 32] [--tokens 64] [--rounds 5] [--dtype bfloat16]
    python scripts/bench_http.py --gpu [--requests 64] [--tokens 256]

The server is a program; its client (``http_streams.load``) reads a step's tokens together and parses only the end,
since a client elsewhere would take no core of the ranks. The engine alone is driven through ``EngineClient``, as
``splitrank bench`` does. Both have the same checkpoint with random weights, the same random prompts and lengths; while
one works, the other is idle. ``front_cpu_us``: CPU time of the server's front for a token, which says more than the
ratio on a machine that does other work. The first token of a request of its own is measured beside.

With ``--gpu`` the shape is that of Qwen3.5-35B-A3B with dummy weights, which a card holds once: the engine alone is
measured first, then the server.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from bench_gpu import config_35b
from bench_shapes import SHAPES, random_model, write_text_checkpoint
from http_streams import load, serving, stream
from tokenizers import Tokenizer

from splitrank.models.torch_dtype import torch_dtype
from splitrank.serving.bench import Job, measure, random_jobs
from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig

LIMIT_S = 600.0
PROMPT_TOKENS = 16
NUM_FIRST = 10  # requests for one token, a round
BEFORE_FIRST_S = 0.05  # between two of them, as a server sees them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S", choices=sorted(SHAPES))
    parser.add_argument("--requests", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.gpu:
            bench_gpu(Path(folder), args)
        else:
            bench_cpu(Path(folder), args)


def bench_cpu(folder: Path, args: argparse.Namespace) -> None:
    write_text_checkpoint(random_model(args.shape, torch_dtype(args.dtype)), folder)
    write_tokenizer(folder, SHAPES[args.shape]["vocab_size"])
    options: dict[str, Any] = {"model": str(folder), "dtype": args.dtype, "max_model_len": 1024, "prefix_cache_mib": 0}
    options["threads_per_rank"] = args.threads
    with serving(*flags(options)) as (port, process):
        asyncio.run(bench(EngineConfig(**options), port, psutil.Process(process.pid), args))


def flags(options: dict[str, Any]) -> list[object]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def bench_gpu(folder: Path, args: argparse.Namespace) -> None:
    config = config_35b()
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])
    options: dict[str, Any] = {"model": str(folder), "load_format": "dummy", "device": "cuda", "max_model_len": 4096}
    options |= {"prefix_cache_mib": 0, "max_running_requests": max(args.requests)}
    alone = asyncio.run(engine_seconds(EngineConfig(**options), args))
    with serving(*flags(options)) as (port, process):
        asyncio.run(served_seconds(config["vocab_size"], port, psutil.Process(process.pid), alone, args))


async def engine_seconds(config: EngineConfig, args: argparse.Namespace) -> dict[int, list[float]]:
    """By number of requests: seconds of each round."""
    spec = resolve_launch(config)
    client = await EngineClient.start(spec)
    try:
        jobs = {count: random_jobs(spec.vocab_size, PROMPT_TOKENS, [args.tokens] * count) for count in args.requests}
        return {
            count: [(await measure(client, own)).seconds for _ in range(args.rounds + 1)] for count, own in jobs.items()
        }
    finally:
        await client.close()


async def served_seconds(
    vocab_size: int, port: int, front: psutil.Process, alone: dict[int, list[float]], args: argparse.Namespace
) -> None:
    for count, engine in alone.items():
        jobs = random_jobs(vocab_size, PROMPT_TOKENS, [args.tokens] * count)
        before = cpu_s(front)
        http = [through_http(port, jobs) for _ in range(args.rounds + 1)]
        spent_us = 1e6 * (cpu_s(front) - before) / (count * args.tokens * (args.rounds + 1))
        labels = {"what": "throughput", "shape": "35B-A3B", "requests": count, "tokens": args.tokens}
        emit(**labels, front_cpu_us=round(spent_us, 1), **ratios(count * args.tokens, engine, http))


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """The demo's, with a word for every id beyond its own: each token of a stream is to have a text."""
    tokenizer = Tokenizer.from_file(str(demo_checkpoint_path() / "tokenizer.json"))
    tokenizer.add_tokens([f"w{number}" for number in range(tokenizer.get_vocab_size(), vocab_size)])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_text((demo_checkpoint_path() / name).read_text())


async def bench(config: EngineConfig, port: int, front: psutil.Process, args: argparse.Namespace) -> None:
    spec = resolve_launch(config)
    client = await EngineClient.start(spec)
    try:
        for requests in args.requests:
            jobs = random_jobs(spec.vocab_size, PROMPT_TOKENS, [args.tokens] * requests)
            labels = {"what": "throughput", "shape": args.shape, "dtype": args.dtype, "requests": requests}
            before = cpu_s(front)
            emit(**labels, tokens=args.tokens, **await throughput(client, port, jobs, args.rounds))
            spent_us = 1e6 * (cpu_s(front) - before) / (requests * args.tokens * (args.rounds + 1))
            emit(what="cost of the front", requests=requests, front_cpu_us=round(spent_us, 1))
        emit(what="first token", shape=args.shape, dtype=args.dtype, **await first_tokens(client, port, args.rounds))
    finally:
        await client.close()


def cpu_s(process: psutil.Process) -> float:
    """CPU time of the process by itself, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def emit(**fields: object) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


async def throughput(client: EngineClient, port: int, jobs: list[Job], rounds: int) -> dict[str, float]:
    """Medians over the rounds, in tokens a second."""
    engine, http = [], []
    for _ in range(rounds + 1):
        engine.append((await measure(client, jobs)).seconds)
        http.append(through_http(port, jobs))
    return ratios(sum(job.output_tokens for job in jobs), engine, http)


def ratios(tokens: int, engine: list[float], http: list[float]) -> dict[str, float]:
    """Of the seconds of rounds with so many tokens; the first one warms up."""
    alone, served = (tokens / statistics.median(seconds[1:]) for seconds in (engine, http))
    found = {"engine_tokens_per_s": alone, "http_tokens_per_s": served, "ratio": served / alone}
    return {name: round(value, 3) for name, value in found.items()}


def through_http(port: int, jobs: list[Job]) -> float:
    """Seconds until all streams have ended. It blocks the loop, so the idle engine's client costs nothing meanwhile."""
    bodies = [request(job) for job in jobs]
    began = time.perf_counter()
    counts = load(port, bodies, LIMIT_S)
    seconds = time.perf_counter() - began
    if counts != [job.output_tokens for job in jobs]:
        raise SystemExit(f"tokens were lost: {counts}")
    return seconds


def request(job: Job) -> dict[str, object]:
    return {"prompt": job.prompt, "max_tokens": job.output_tokens, "temperature": 0, "ignore_eos": True}


async def first_tokens(client: EngineClient, port: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds of requests that come one by one."""
    (job,) = random_jobs(4096, PROMPT_TOKENS, [1])
    engine, http = [], []
    for _ in range(NUM_FIRST * rounds):
        await asyncio.sleep(BEFORE_FIRST_S)
        engine.append((await measure(client, [job])).first_token_s)
        await asyncio.sleep(BEFORE_FIRST_S)
        http.append((await stream(port, request(job), LIMIT_S)).stamps[0])
    alone, served = (1000 * statistics.median(one) for one in (engine, http))
    return {"engine_ms": round(alone, 2), "http_ms": round(served, 2), "difference_ms": round(served - alone, 2)}


if __name__ == "__main__":
    main()
