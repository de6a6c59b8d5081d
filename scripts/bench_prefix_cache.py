"""What the prefix cache costs prompts that share nothing, and what it gives a chat; JSON lines on stdout.

    python scripts/bench_prefix_cache.py [--shape S] [--rounds 10] [--threads 1]

Two engines on the demo checkpoint or a random one of a benchmark shape, with the cache and without, take turns.
One-shot: eight prompts at once that never come again. Chat: ten turns, each alone, one token of answer timed, with a
template that drops earlier thinking and with one that repeats answers word for word.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from bench_shapes import SHAPES, random_model, write_text_checkpoint

from splitrank.serving.bench import Job, measure, random_jobs
from splitrank.serving.config import EngineConfig
from splitrank.serving.engine_client import EngineClient
from splitrank.serving.resolve import resolve_launch
from splitrank.serving.sampling_params import SamplingParams

NUM_TURNS, QUESTION, ANSWER, THOUGHTS = 10, 80, 60, 60
MARKER = [44, 45, 46, 47]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="without it the demo checkpoint")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            write_text_checkpoint(random_model(args.shape, torch.bfloat16), Path(folder))
        config = EngineConfig(model=folder if args.shape else None, max_model_len=4096, threads_per_rank=args.threads)
        asyncio.run(bench(config, args.shape or "demo", args.rounds))


async def bench(config: EngineConfig, shape: str, rounds: int) -> None:
    """Both engines at once; only one of them computes at a time."""
    spec = resolve_launch(config)
    cached = await EngineClient.start(spec)
    whole = await EngineClient.start(resolve_launch(replace(config, prefix_cache_mib=0)))
    labels = {"shape": shape, "state_bytes": spec.state_bytes, "kv_page_bytes": spec.kv_page_bytes}
    try:
        for prompt_tokens, output_tokens in ((128, 1), (500, 1), (128, 32)):
            ratio = await one_shot(cached, whole, prompt_tokens, output_tokens, rounds)
            emit(what="one-shot", prompt=prompt_tokens, output=output_tokens, seconds_ratio=round(ratio, 3), **labels)
        for repeats_answers in (False, True):
            emit(what="chat", repeats_answers=repeats_answers, **await chats(cached, whole, repeats_answers), **labels)
    finally:
        await cached.close()
        await whole.close()


def emit(**fields: object) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


async def one_shot(
    cached: EngineClient, whole: EngineClient, prompt_tokens: int, output_tokens: int, rounds: int
) -> float:
    """Median ratio of the times with and without the cache, of rounds that take turns in going first."""
    ratios = []
    for number in range(rounds + 1):
        jobs = random_jobs(
            4000, prompt_tokens, [output_tokens] * 8, seed=1000 * prompt_tokens + 10 * output_tokens + number
        )
        seconds = {}
        for client in (cached, whole) if number % 2 else (whole, cached):
            seconds[client] = (await measure(client, jobs)).seconds
        if number:  # the first warms up
            ratios.append(seconds[cached] / seconds[whole])
    return statistics.median(ratios)


async def chats(cached: EngineClient, whole: EngineClient, repeats_answers: bool) -> dict[str, float]:
    """Ten turns: the cache's part of all prompts and of the last, and its time to the first token of turns 2 to 10."""
    draw = random.Random(repeats_answers)
    marker, thoughts = ([], 0) if repeats_answers else (MARKER, THOUGHTS)
    history: list[int] = []
    lengths, from_cache, seconds = [], [], {cached: 0.0, whole: 0.0}
    for turn in range(NUM_TURNS):
        history += [draw.randrange(100, 4000) for _ in range(QUESTION)]
        prompt = [*history, *marker]
        # Without the cache one token is enough: its answers are not heard.
        plain = await measure(whole, [Job(prompt, 1)])
        answer, num_cached, first_token_s = await ask(cached, prompt, thoughts + ANSWER)
        if turn:
            seconds[whole] += plain.first_token_s
            seconds[cached] += first_token_s
        lengths.append(len(prompt))
        from_cache.append(num_cached)
        history += answer[thoughts:]
    return {
        "cached_of_all_prompts": round(sum(from_cache) / sum(lengths), 3),
        "cached_of_last_prompt": round(from_cache[-1] / lengths[-1], 3),
        "first_token_seconds_ratio": round(seconds[cached] / seconds[whole], 3),
    }


async def ask(client: EngineClient, prompt: list[int], max_tokens: int) -> tuple[list[int], int, float]:
    """The answer, the prompt's tokens from the cache, seconds to the first token."""
    answer: list[int] = []
    began, first = asyncio.get_running_loop().time(), 0.0
    num_cached = 0
    async for output in client.stream(prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)):
        first = first or asyncio.get_running_loop().time() - began
        answer += output.token_ids
        num_cached = output.num_cached_tokens
    return answer, num_cached, first


if __name__ == "__main__":
    main()
