"""How torch's threads should wait for each other: step times on cores of their own and beside a busy neighbour.

    python scripts/bench_waiting.py [--model DIR] [--dtype float32] [--rounds 3] [--threads 2] [--realtime]

JSON lines on stdout. One engine for each way of waiting (the environment of its ranks) stays up; they take turns, alone
and beside a process that does nothing but use a core. ``ratio`` is to one thread in the same surroundings, of medians.
``--realtime`` (root): in the turns alone nothing else can take a core from engine and ranks, as on a quiet machine.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from unittest import mock

from splitrank.serving.bench import Job, measure, random_jobs
from splitrank.serving.launch import processes
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig, child_environment

LIBGOMPS_DEFAULT = "300000"
WAYS: dict[str, dict[str, str]] = {  # environment of the ranks
    "one thread": {},
    "libgomp's default": {"GOMP_SPINCOUNT": LIBGOMPS_DEFAULT},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "3,000 spins": {"GOMP_SPINCOUNT": "3000"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"GOMP_SPINCOUNT": "0"},
}
ALONE, BESIDE = "alone", "beside a busy process"
NUM_TOKENS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--realtime", action="store_true")
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
            with neighbour(surroundings == BESIDE), on_own_cores(args.realtime and surroundings == ALONE, clients):
                for way, client in clients.items():
                    result = await measure(client, jobs)
                    seconds = result.between_tokens_s or result.first_token_s
                    times.setdefault((way, surroundings), []).append(seconds)
    for (way, surroundings), all_seconds in sorted(times.items(), key=lambda entry: entry[0][1]):
        line: dict[str, object] = {"workload": workload, "surroundings": surroundings, "way": way}
        for name, pick in (("median", statistics.median), ("best", min), ("worst", max)):
            line[f"{name}_ms"] = round(1000 * pick(all_seconds), 1)
        one_thread = statistics.median(times["one thread", surroundings])
        print(json.dumps(line | {"ratio": round(statistics.median(all_seconds) / one_thread, 2)}), flush=True)


@contextmanager
def on_own_cores(wanted: bool, clients: dict[str, EngineClient]) -> Iterator[None]:
    """Engines and this process above the ranks, which otherwise would not let them go on."""
    if wanted:
        schedule(clients, os.SCHED_FIFO, 2, 1)
    try:
        yield
    finally:
        if wanted:
            schedule(clients, os.SCHED_OTHER, 0, 0)


def schedule(clients: dict[str, EngineClient], policy: int, priority: int, priority_of_ranks: int) -> None:
    priorities = {os.getpid(): priority}
    for client in clients.values():
        priorities |= {pid: priority if name == "engine" else priority_of_ranks for name, pid in client.pids.items()}
    for pid, own in priorities.items():
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), policy, os.sched_param(own))


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
