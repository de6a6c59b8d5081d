"""What the host does in one decode step, without model and sampling: CPU microseconds by part.

``python scripts/bench_host_path.py [--steps 200]`` prints a JSON line for each number of running requests and length of
context. The engine plans, encodes, commits and encodes outputs; the rank decodes, makes the batch and takes tokens.
Both run in one thread, joined by the real sockets, whose own thread is not counted. Medians of the better 60 % of the
steps, which other processes on the machine disturb least.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from typing import Any

import msgspec
import torch
import zmq

from splitrank.models.rounding import pages_needed
from splitrank.serving.engine.scheduler import Scheduler
from splitrank.serving.protocol.messages import (
    AddRequest,
    LaunchSpec,
    RequestOutputs,
    StepPlan,
    StepResult,
    plan_hash,
)
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.wire import (
    bind_ranks,
    connect_rank,
    decode_engine_to_rank,
    decode_rank_to_engine,
    encode,
    rank_identity,
    receive_all,
)
from splitrank.serving.rank.batch_builder import make_batch
from splitrank.serving.rank.request_table import RequestTable

PAGE_SIZE, VOCAB_SIZE = 64, 248_320
CASES = [(1, 2048), (8, 2048), (64, 2048), (256, 2048), (256, 32_000)]


def make_spec(num_requests: int, length: int) -> LaunchSpec:
    fields: dict[str, Any] = {"dtype": "bfloat16", "tp_size": 1, "pp_size": 1, "partition": (1,), "run_dir": ""}
    fields |= {"model_dir": "", "tie_word_embeddings": False, "threads_per_rank": 1, "seed": 0, "load_timeout_s": 1.0}
    fields |= {"step_timeout_s": 1.0, "heartbeat_timeout_s": 1.0, "verify_weights": False, "log_level": "error"}
    fields |= {"show_progress": False, "max_queued_requests": num_requests, "eos_token_ids": (248_044, 248_046)}
    sizes: dict[str, Any] = {
        "max_model_len": length,
        "page_size": PAGE_SIZE,
        "num_pages": num_requests * (length // PAGE_SIZE + 2),
    }
    sizes |= {"chunked_prefill_size": 2**24, "max_prefill_tokens": 2**24, "vocab_size": VOCAB_SIZE}
    return LaunchSpec(**fields, **sizes, max_running_requests=num_requests)


class NullRank:
    """A rank without a model: its table, its batches, and tokens that stop nobody."""

    def __init__(self, spec: LaunchSpec) -> None:
        max_pages = pages_needed(spec.max_model_len, spec.page_size)
        self.table = RequestTable(spec.max_running_requests, max_pages, spec.page_size, torch.device("cpu"))

    def execute(self, plan: StepPlan) -> list[int]:
        for new in plan.admitted:
            self.table.admit(new, None)
        for pages in plan.pages:
            self.table.add_pages(pages)
        planned = make_batch(self.table, plan.decodes, plan.chunks)
        self.table.advance(planned.host_slots, planned.ends)
        return planned.sampled

    def take(self, slots: list[int], tokens: list[int]) -> None:
        self.table.put_tokens(slots, torch.tensor(tokens))


class Sockets:
    """The engine's end and one rank's, as between processes."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._engine = bind_ranks(self._context, spec)
        self._rank = connect_rank(self._context, spec, rank_identity(0))
        self._poller = zmq.Poller()
        self._poller.register(self._engine, zmq.POLLIN)
        self._rank.send(b"here")
        self._engine.recv_multipart()

    def to_rank(self, data: bytes) -> bytes:
        self._engine.send_multipart([rank_identity(0), data], zmq.NOBLOCK)
        return self._rank.recv()

    def to_engine(self, data: bytes) -> bytes:
        self._rank.send(data)
        self._poller.poll(1000)
        [[_, received]] = receive_all(self._engine)
        return received

    def close(self) -> None:
        self._engine.close(linger=0)
        self._rank.close(linger=0)
        self._context.term()


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


def measure(num_requests: int, context: int, num_steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sr-") as folder:
        spec = msgspec.structs.replace(make_spec(num_requests, context + num_steps + 100), run_dir=folder)
        sockets = Sockets(spec)
        try:
            return run_steps(spec, sockets, context, num_steps)
        finally:
            sockets.close()


@torch.inference_mode()
def run_steps(spec: LaunchSpec, sockets: Sockets, context: int, num_steps: int) -> dict[str, Any]:
    num_requests = spec.max_running_requests
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
        data = sockets.to_rank(data)
        timer.part("socket_to_rank")
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
        answer = encode(StepResult(plan.step, digest, tokens))
        timer.part("encode_result")
        answer = sockets.to_engine(answer)
        timer.part("socket_to_engine")
        result = decode_rank_to_engine(answer)
        timer.part("decode_result")
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
