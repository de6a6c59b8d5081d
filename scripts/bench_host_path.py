"""What the host does in one decode step, without model and sampling: CPU microseconds of one thread, by part.

``python scripts/bench_host_path.py [--steps 200]`` prints a JSON line for each number of running requests and length of
context. The engine plans, encodes, commits and encodes outputs; the rank decodes, makes the batch and takes tokens.
Sockets are left out. Medians of the better 60 % of the steps, which other processes on the machine disturb least.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from typing import Any

import torch

from splitrank.serving.batching import make_batch
from splitrank.serving.messages import (
    AddRequest,
    LaunchSpec,
    RequestOutputs,
    StepPlan,
    StepResult,
    plan_hash,
)
from splitrank.serving.request_table import RequestTable
from splitrank.serving.sampling_params import SamplingParams
from splitrank.serving.scheduler import Scheduler
from splitrank.serving.wire import decode_engine_to_rank, decode_rank_to_engine, encode

PAGE_SIZE, VOCAB_SIZE = 64, 248_320
CASES = [(1, 2048), (8, 2048), (64, 2048), (256, 2048), (256, 32_000)]


def make_spec(num_requests: int, length: int) -> LaunchSpec:
    fields: dict[str, Any] = {"dtype": "bfloat16", "tp_size": 1, "pp_size": 1, "partition": (1,), "run_dir": ""}
    fields |= {"model_dir": "", "tie_word_embeddings": False, "threads_per_rank": 1, "seed": 0, "load_timeout_s": 1.0}
    fields |= {"step_timeout_s": 1.0, "heartbeat_timeout_s": 1.0, "verify_weights": False, "log_level": "error"}
    fields |= {"show_progress": False, "max_queued_requests": num_requests, "eos_token_ids": (248_044, 248_046)}
    sizes = {"max_model_len": length, "page_size": PAGE_SIZE, "num_pages": num_requests * (length // PAGE_SIZE + 2)}
    sizes |= {"chunked_prefill_size": 2**24, "max_prefill_tokens": 2**24, "vocab_size": VOCAB_SIZE}
    return LaunchSpec(**fields, **sizes, max_running_requests=num_requests)


class NullRank:
    """A rank without a model: its table, its batches, and tokens that stop nobody."""

    def __init__(self, spec: LaunchSpec) -> None:
        max_pages = -(-spec.max_model_len // spec.page_size)
        self.table = RequestTable(spec.max_running_requests, max_pages, spec.page_size, torch.device("cpu"))

    def execute(self, plan: StepPlan) -> list[int]:
        for new in plan.admitted:
            self.table.admit(new, None)
        for pages in plan.pages:
            self.table.add_pages(pages)
        planned = make_batch(self.table, plan.decodes, plan.chunks)
        self.table.advance(planned.batch, planned.host_slots)
        return planned.sampled

    def take(self, slots: list[int], tokens: list[int]) -> None:
        self.table.put_tokens(slots, torch.tensor(tokens))


class Timer:
    """Microseconds of this thread by part."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)
        self._last = 0

    def begin(self) -> None:
        self._last = time.thread_time_ns()

    def part(self, name: str) -> None:
        now = time.thread_time_ns()
        self.spent[name].append((now - self._last) / 1e3)
        self._last = time.thread_time_ns()

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(sorted(spent)[: len(spent) * 6 // 10]) for name, spent in self.spent.items()}


@torch.inference_mode()
def measure(num_requests: int, context: int, num_steps: int) -> dict[str, Any]:
    spec = make_spec(num_requests, context + num_steps + 100)
    scheduler, rank, timer = Scheduler(spec, 1, plans_ahead=True), NullRank(spec), Timer()
    params = SamplingParams(max_tokens=num_steps + 90, temperature=0.6, top_k=20, top_p=0.95, seed=1)
    for number in range(num_requests):
        prompt = [(7 * number + position) % 1000 for position in range(context - number % PAGE_SIZE)]
        assert scheduler.add(AddRequest(str(number), prompt, params)) is None
    digest = ""
    for step in range(num_steps + 10):
        if step == 10:
            timer = Timer()
        timer.begin()
        plan = scheduler.schedule(digest)
        assert plan is not None
        timer.part("schedule")
        data = encode(plan)
        digest = plan_hash(data)
        timer.part("encode_plan")
        received = decode_engine_to_rank(data)
        plan_hash(data)
        timer.part("rank_decode")
        assert isinstance(received, StepPlan)
        sampled = rank.execute(received)
        timer.part("rank_batch")
        tokens = [17] * len(sampled)
        timer.begin()
        rank.take(sampled, tokens)
        timer.part("rank_tokens")
        result = decode_rank_to_engine(encode(StepResult(plan.step, digest, tokens)))
        timer.part("result")
        assert isinstance(result, StepResult)
        outputs = scheduler.commit(result)
        timer.part("commit")
        encode(RequestOutputs([outputs]))
        timer.part("encode_outputs")
    parts = {name: round(value, 1) for name, value in timer.medians().items()}
    row = {"requests": num_requests, "context": context, "sum_us": round(sum(parts.values())), "plan_bytes": len(data)}
    return row | {"parts_us": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    for num_requests, context in CASES:
        print(json.dumps(measure(num_requests, context, steps)), flush=True)


if __name__ == "__main__":
    main()
