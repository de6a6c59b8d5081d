"""What the prefix cache costs prompts that share nothing, and what it gives a chat; JSON lines on stdout.

    python scripts/bench_prefix_cache.py [--shape S] [--rounds 20]

Scheduler and rank run in this process on one thread, with the cache and without it in turns. Times are CPU seconds, so
that others on the machine matter little. One-shot: eight prompts at once that never come again. Chat: ten turns one
after the other, with a template that drops earlier thinking and with one that repeats answers; to the first token.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from bench_shapes import SHAPES, random_model, write_text_checkpoint

from splitrank.serving.bench import Job, random_jobs
from splitrank.serving.engine.scheduler import Scheduler
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import AddRequest, RequestOutput
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.worker import Worker

ONE_SHOT = [(128, 1), (500, 1), (128, 32)]  # tokens of each prompt and answer
NUM_TURNS, QUESTION, ANSWER, THOUGHTS = 10, 80, 60, 60
MARKER = [44, 45, 46, 47]


class Engine:
    """One rank and its scheduler, without processes."""

    def __init__(self, config: EngineConfig, run_dir: Path) -> None:
        run_dir.mkdir()
        self.spec = msgspec.structs.replace(resolve_launch(config), run_dir=str(run_dir))
        self._scheduler = Scheduler(self.spec, num_microbatches=1)
        self._worker = Worker(self.spec, rank=0)
        self._worker.load()
        self._num_requests = 0

    def answer(self, jobs: list[Job]) -> tuple[list[list[RequestOutput]], float, float]:
        """The outputs of each job, and the CPU seconds until the first of all and until the end."""
        outputs: dict[str, list[RequestOutput]] = {}
        began, first = time.process_time(), 0.0
        for job in jobs:
            self._num_requests += 1
            name = str(self._num_requests)
            outputs[name] = []
            params = SamplingParams(max_tokens=job.output_tokens, temperature=0.0, ignore_eos=True)
            assert self._scheduler.add(AddRequest(name, job.prompt, params)) is None
        while (plan := self._scheduler.schedule("")) is not None:
            result = self._worker.execute(plan, "")
            assert result is not None
            for output in self._scheduler.commit(result).all():
                outputs[output.request_id].append(output)
                first = first or time.process_time() - began
        return list(outputs.values()), first, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="without it the demo checkpoint")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        if args.shape:
            model.mkdir()
            write_text_checkpoint(random_model(args.shape, torch.bfloat16), model)
        config = EngineConfig(model=str(model) if args.shape else "", max_model_len=4096, threads_per_rank=1)
        cached = Engine(config, Path(folder, "cached"))
        whole = Engine(replace(config, prefix_cache_mib=0), Path(folder, "whole"))
        bench(cached, whole, args.shape or "demo", args.rounds)


def bench(cached: Engine, whole: Engine, shape: str, rounds: int) -> None:
    labels = {"shape": shape, "state_bytes": cached.spec.state_bytes, "kv_page_bytes": cached.spec.kv_page_bytes}
    for prompt_tokens, output_tokens in ONE_SHOT:
        ratio = one_shot(cached, whole, prompt_tokens, output_tokens, rounds)
        emit(what="one-shot", prompt=prompt_tokens, output=output_tokens, cpu_ratio=round(ratio, 3), **labels)
    for repeats_answers in (False, True):
        emit(what="chat", repeats_answers=repeats_answers, **chat(cached, whole, repeats_answers), **labels)


def emit(**fields: object) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


def one_shot(cached: Engine, whole: Engine, prompt_tokens: int, output_tokens: int, rounds: int) -> float:
    """CPU seconds with the cache over those without, the median of rounds that take turns in going first."""
    ratios = []
    for number in range(rounds + 1):
        seed = 1000 * prompt_tokens + 100 * output_tokens + number
        jobs = random_jobs(4000, prompt_tokens, [output_tokens] * 8, seed)
        seconds = {}
        for engine in (cached, whole) if number % 2 else (whole, cached):
            _, _, seconds[engine] = engine.answer(jobs)
        if number:  # the first warms up
            ratios.append(seconds[cached] / seconds[whole])
    return statistics.median(ratios)


def chat(cached: Engine, whole: Engine, repeats_answers: bool) -> dict[str, float]:
    """The cache's part of the prompts, and the CPU seconds to the first token of turns 2 to 10 with over without it."""
    draw = random.Random(repeats_answers)
    marker, num_thoughts = ([], 0) if repeats_answers else (MARKER, THOUGHTS)
    history: list[int] = []
    lengths, from_cache, with_cache, without = [], [], 0.0, 0.0
    for turn in range(NUM_TURNS):
        history += [draw.randrange(100, 4000) for _ in range(QUESTION)]
        prompt = [*history, *marker]
        _, first_whole, _ = whole.answer([Job(prompt, 1)])
        [outputs], first_cached, _ = cached.answer([Job(prompt, num_thoughts + ANSWER)])
        if turn:
            without += first_whole
            with_cache += first_cached
        lengths.append(len(prompt))
        from_cache.append(outputs[0].num_cached_tokens)
        history += [token for output in outputs for token in output.token_ids][num_thoughts:]
    return {
        "cached_of_all_prompts": round(sum(from_cache) / sum(lengths), 3),
        "cached_of_last_prompt": round(from_cache[-1] / lengths[-1], 3),
        "first_token_cpu_ratio": round(with_cache / without, 3),
    }


if __name__ == "__main__":
    main()
