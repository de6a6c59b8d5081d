"""A thousand streams at once against the demo, served as a program: what is lost, differs, is left; JSON lines.

    python scripts/bench_many_streams.py [--streams 1000] [--prompts 50] [--tokens 32]

Half of the prompts are sampled with a seed. In float32 the composition of a batch changes no token
(docs/comparing.md), so each stream must give the tokens that its prompt gives alone. Exit code 1 if a stream is lost or
differs, or if pages, slots or file descriptors do not come back.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any
from urllib.request import urlopen

import psutil  # type: ignore[import-untyped]
from http_streams import ADDRESS, Streamed, serving, stream

LIMIT_S = 1800.0
BACK_S = 60.0
WATCH_S = 0.25
CONTEXT = 2048
NAMES = ("Mia", "Leo", "Tom", "Ada", "Hans", "Joan", "Toby", "Chris", "Tim", "Natalia")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    bodies = [body(number, args.tokens) for number in range(args.prompts)]
    with serving("--dtype", "float32", "--max-model-len", CONTEXT) as (port, process):
        found = asyncio.run(compare(port, psutil.Process(process.pid), bodies, args.streams))
    print(json.dumps({"streams": args.streams, "prompts": args.prompts, "tokens": args.tokens, **found}), flush=True)
    return int(bool(found["lost"] or found["different"] or not found["all_is_back"]))


def body(number: int, tokens: int) -> dict[str, Any]:
    """A question of its own; every second one is sampled."""
    name, count = NAMES[number % len(NAMES)], 11 + number
    question = f"Question: {name} has {count} shells and finds 9 more. How many shells does {name} have?\nAnswer:"
    sampling = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0}
    return {"prompt": question, "max_tokens": tokens, "ignore_eos": True, **sampling}


async def compare(port: int, front: psutil.Process, bodies: list[dict[str, Any]], num: int) -> dict[str, object]:
    """Each prompt alone, then ``num`` streams at once, then what is left of them."""
    alone = [await stream(port, one, LIMIT_S) for one in bodies]
    for one in alone:
        if one.error:
            raise SystemExit(f"alone, a request failed: {one.error}")
    before = resources(port, front)
    memory = Memory(front)
    watching = asyncio.create_task(memory.watch())
    began = time.perf_counter()
    streams = await asyncio.gather(*(stream(port, bodies[index % len(bodies)], LIMIT_S) for index in range(num)))
    seconds = time.perf_counter() - began
    watching.cancel()
    after = await until_back(port, front, before)
    lost = [one.error or "no end" for one in streams if one.error or not one.finish_reason]
    return {
        "lost": len(lost),
        "errors": sorted(set(lost))[:5],
        "different": sum(one.token_ids != alone[index % len(alone)].token_ids for index, one in enumerate(streams)),
        "seconds": round(seconds, 1),
        "tokens_per_s": round(sum(len(one.token_ids) for one in streams) / seconds),
        "first_token_s": first_tokens(streams),
        "front_mib": memory.mib,
        "before": before,
        "after": after,
        "all_is_back": after == before,
    }


def resources(port: int, front: psutil.Process) -> dict[str, float]:
    """Free slots and pages, and the descriptors of front, engine and ranks."""
    with urlopen(f"http://{ADDRESS}:{port}/metrics", timeout=LIMIT_S) as answer:
        samples = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    free = {name: float(samples[f"splitrank_engine_free_{name}"]) for name in ("slots", "pages")}
    processes = [front, *front.children()]
    return {**free, "descriptors": sum(process.num_fds() for process in processes)}


async def until_back(port: int, front: psutil.Process, before: dict[str, float]) -> dict[str, float]:
    """The resources as soon as they are as before, or after ``BACK_S``."""
    deadline = time.monotonic() + BACK_S
    while (now := resources(port, front)) != before and time.monotonic() < deadline:  # noqa: ASYNC110 - a process's
        await asyncio.sleep(WATCH_S)
    return now


class Memory:
    """What the front holds, in MiB: at first, and at most."""

    def __init__(self, front: psutil.Process) -> None:
        self._front = front
        self.mib = {"before": self._now(), "most": 0}

    def _now(self) -> int:
        return int(self._front.memory_info().rss // 2**20)

    async def watch(self) -> None:
        while True:
            self.mib["most"] = max(self.mib["most"], self._now())
            await asyncio.sleep(WATCH_S)


def first_tokens(streams: list[Streamed]) -> dict[str, float]:
    """Seconds to the first token: the median and the longest; most streams wait in the queue."""
    stamps = [one.stamps[0] for one in streams if one.stamps] or [0.0]
    return {"median": round(statistics.median(stamps), 1), "most": round(max(stamps), 1)}


if __name__ == "__main__":
    sys.exit(main())
