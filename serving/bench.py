"""``splitrank bench``: throughput and latency of the engine on one layout, one JSON line a workload.

Figures depend on the machine and on the moment, so compare within one run only (``scripts/bench_engine.py`` compares
with ``transformers``). Prompts are random token ids; sampling is greedy with ``ignore_eos``, so lengths are exact.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import msgspec

from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import COUNT, MIB, EngineConfig, option
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.protocol.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class BenchConfig(EngineConfig):
    """``splitrank bench``."""

    concurrency: tuple[int, ...] = option((1, 8), "requests at once, one workload each, e.g. 1,8,32", bounds=COUNT)
    prompt_tokens: int = option(128, "tokens of each prompt", bounds=COUNT)
    prefix_cache_mib: int = option(0, "as for serve; off here, because every round sends the same prompts", bounds=MIB)
    output_tokens: int = option(128, "tokens of each answer", bounds=COUNT)
    rounds: int = option(3, "times each workload is run; the median is reported", bounds=COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concurrency:
            raise ValueError("concurrency must list at least one number")
        self.check_concurrency(*self.concurrency)


@dataclass(frozen=True)
class Job:
    """One request of a workload."""

    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True)
class Measurement:
    """Wall time of a workload, and its requests' times to first token and between tokens (seconds)."""

    seconds: float
    output_tokens: int
    first_token_s: float  # median over requests
    between_tokens_s: float  # median over requests of the mean gap; 0 if no request has two tokens

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


def random_jobs(vocab_size: int, prompt_tokens: int, output_tokens: list[int], seed: int = 0) -> list[Job]:
    """One job with a random prompt for each output length."""
    draw = random.Random(seed)
    return [Job([draw.randrange(vocab_size) for _ in range(prompt_tokens)], count) for count in output_tokens]


async def measure(client: EngineClient, jobs: list[Job], params: SamplingParams = GREEDY) -> Measurement:
    """Runs all jobs at once; the engine's ``max_running_requests`` decides how many are computed together."""
    began = time.perf_counter()
    times = await asyncio.gather(*(_token_times(client, job, params) for job in jobs))
    seconds = time.perf_counter() - began
    gaps = [
        (stamps[-1] - stamps[0]) / (job.output_tokens - 1)
        for stamps, job in zip(times, jobs, strict=True)
        if job.output_tokens > 1
    ]
    return Measurement(
        seconds,
        sum(job.output_tokens for job in jobs),
        statistics.median(stamps[0] - began for stamps in times),
        statistics.median(gaps) if gaps else 0.0,
    )


async def _token_times(client: EngineClient, job: Job, params: SamplingParams) -> list[float]:
    params = msgspec.structs.replace(params, max_tokens=job.output_tokens, ignore_eos=True)
    count, stamps = 0, []
    async for output in client.stream(job.prompt, params):
        if output.error is not None:
            raise ValueError(f"a request failed: {output.error}")
        count += len(output.token_ids)
        stamps.append(time.perf_counter())
    assert count == job.output_tokens, (count, job.output_tokens)
    return stamps


def run_bench(config: BenchConfig) -> int:
    """Prints JSON lines on stdout; exit code 0."""
    spec = resolve_launch(config)
    if config.prompt_tokens + config.output_tokens > spec.max_model_len:
        raise ValueError(
            f"prompt_tokens {config.prompt_tokens} + output_tokens {config.output_tokens} exceed "
            f"the context of {spec.max_model_len}"
        )
    asyncio.run(_bench(config, spec))
    return 0


async def _bench(config: BenchConfig, spec: LaunchSpec) -> None:
    client = await EngineClient.start(spec)
    try:
        for report in client.reports:
            print(report, file=sys.stderr)
        for concurrency in config.concurrency:
            jobs = random_jobs(spec.vocab_size, config.prompt_tokens, [config.output_tokens] * concurrency)
            await measure(client, jobs)  # warm-up
            rounds = [await measure(client, jobs) for _ in range(config.rounds)]
            print(json.dumps(_line(config, spec, concurrency, rounds)), flush=True)
    finally:
        await client.close()


def _line(config: BenchConfig, spec: LaunchSpec, concurrency: int, rounds: list[Measurement]) -> dict[str, object]:
    middle = sorted(rounds, key=lambda one: one.seconds)[len(rounds) // 2]
    return {
        "model": config.model or "demo",
        "dtype": spec.dtype,
        "tp": spec.tp_size,
        "pp": spec.pp_size,
        "threads_per_rank": spec.threads_per_rank,
        "concurrency": concurrency,
        "prompt_tokens": config.prompt_tokens,
        "output_tokens": middle.output_tokens,
        **{name: _measured(value) for name, value in asdict(middle).items() if name != "output_tokens"},
        "tokens_per_second": _measured(middle.tokens_per_second),
    }


def _measured(value: float) -> float:
    """Five digits: no run repeats more of them."""
    return float(f"{value:.5g}")
