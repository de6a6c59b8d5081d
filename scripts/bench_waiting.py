"""How torch's threads should wait for each other: step times on cores of their own and beside a busy neighbour.

    python scripts/bench_waiting.py [--model DIR] [--dtype float32] [--rounds 3] [--threads 2]

JSON lines on stdout. One engine for each way of waiting (the environment of its ranks) stays up; they take turns, alone
and beside a process that does nothing but use a core. ``ratio`` is to one thread in the same surroundings, of medians.
Each turn begins with two seconds that do not count, in which ranks notice their surroundings (``thread_wait.py``).
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from unittest import mock

from splitrank.serving.bench import Job, measure, random_jobs
from splitrank.serving.launch import processes
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig, child_environment

WAYS: dict[str, dict[str, str]] = {  # environment of the ranks
    "one thread": {},
    "default": {},
    "asleep at once": {"GOMP_SPINCOUNT": "0"},
}
ALONE, BESIDE = "alone", "beside a busy process"
NUM_TOKENS = 16
SETTLE_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    asyncio.run(bench(parser.parse_args()))


async def bench(args: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        clients: dict[str, EngineClient] = {}
        for way in args.ways:
            threads = 1 if way == "one thread" else args.threads
            config = EngineConfig(model=args.model, dtype=args.dtype, prefix_cache_mib=0, threads_per_rank=threads,
                                  max_model_len=1024, max_running_requests=8)  # fmt: skip
            spec = resolve_launch(config)
            environment = child_environment() | WAYS[way]
            with mock.patch.object(processes, "child_environment", lambda environment=environment: environment):
                clients[way] = await EngineClient.start(spec)
            stack.push_async_callback(clients[way].close)
        workloads = {
            "decode step of 8": random_jobs(spec.vocab_size, 16, [NUM_TOKENS] * 8),
            "prefill of 512": random_jobs(spec.vocab_size, 512, [1]),
        }
        for name, jobs in workloads.items():
            await compare(args, clients, name, jobs)


async def compare(args: argparse.Namespace, clients: dict[str, EngineClient], workload: str, jobs: list[Job]) -> None:
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for surroundings in (ALONE, BESIDE):
            with neighbour(surroundings == BESIDE):
                for way, client in clients.items():
                    seconds = await settled_seconds(client, jobs)
                    times.setdefault((way, surroundings), []).append(seconds)
    for (way, surroundings), all_seconds in sorted(times.items(), key=lambda entry: entry[0][1]):
        line: dict[str, object] = {"workload": workload, "surroundings": surroundings, "way": way}
        for name, pick in (("median", statistics.median), ("best", min), ("worst", max)):
            line[f"{name}_ms"] = round(1000 * pick(all_seconds), 1)
        one_thread = statistics.median(times["one thread", surroundings])
        print(json.dumps(line | {"ratio": round(statistics.median(all_seconds) / one_thread, 2)}), flush=True)


async def settled_seconds(client: EngineClient, jobs: list[Job]) -> float:
    ends = time.monotonic() + SETTLE_S
    while time.monotonic() < ends:
        await measure(client, jobs)
    result = await measure(client, jobs)
    return result.between_tokens_s or result.first_token_s


@contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            yield
        finally:
            busy.kill()


if __name__ == "__main__":
    main()
