"""Where a decode step's time goes, and the limits it is measured against."""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from splitrank.models.config import read_config
from splitrank.models.ops.operations import Operations
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import AdmittedRequest, ChunkPlan, NewPages, StepPlan
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.worker import Worker

_VERBS = ("embed", "add_norm_project", "mix_delta", "norm_gate_project", "mix_attention", "project", "experts", "head")


def read_bandwidth() -> float:
    """GB/s of summing 256 MB, the best of three: the machine's figure of the moment, at the current thread count."""
    data = torch.ones(64 * 2**20)
    return data.nbytes / 1e9 / min(_timed(data.sum) for _ in range(3))


def _timed(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def expert_floor(folder: str) -> dict[str, float]:
    """Expected distinct experts a layer for one batch of 16 and for each of two microbatches of 8, and what that costs.

    With uniform routing a batch of n tokens touches E (1 - (1 - k/E)^n) experts. Two microbatches read their experts
    twice; pp=2 halves the layers a stage, so the ratio of bytes is the most that pp=2 can reach when bound by memory.
    """
    config = read_config(Path(folder))
    share = 1 - config.num_experts_per_tok / config.num_experts
    touched = {n: config.num_experts * (1 - share**n) for n in (8, 16)}
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    others = _parameters_without_experts(folder)
    bytes_16, bytes_8 = (others + config.num_hidden_layers * touched[n] * expert for n in (16, 8))
    return {
        "experts_touched_16": round(touched[16], 1),
        "experts_touched_8": round(touched[8], 1),
        "floor_ratio_if_memory_bound": round(bytes_16 / (2 * bytes_8), 2),
        "floor_ratio_if_compute_bound": 1.0,
    }


def _parameters_without_experts(folder: str) -> float:
    from splitrank.models.checkpoint import open_checkpoint

    config = read_config(Path(folder))
    entries = open_checkpoint(Path(folder), config).tensors
    return sum(
        entry.num_bytes / entry.item_bytes
        for name, entry in entries.items()
        if ".experts." not in name and name != "embed_tokens.weight"
    )


def profile_decode(folder: str, dtype: str, threads: int, num_requests: int = 8, steps: int = 60) -> dict[str, Any]:
    """Milliseconds of a decode step of ``num_requests``, by part, in this process (no engine, no messages)."""
    torch.set_num_threads(threads)
    config = EngineConfig(model=folder, dtype=dtype, max_model_len=1024, max_running_requests=num_requests)
    worker = Worker(resolve_launch(config), rank=0)
    worker.load()
    spent: dict[str, float] = defaultdict(float)
    time_verbs(worker.ops, spent)
    for step in range(steps + 10):
        if step == 10:
            spent.clear()
            began = time.perf_counter()
        worker.execute(_decode_plan(step, num_requests), "")
    total = (time.perf_counter() - began) / steps * 1e3
    parts = {
        name: round(seconds / steps * 1e3, 2) for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    }
    parts["the rest: sampling, batching, rotary"] = round(total - sum(parts.values()), 2)
    worker.close()
    return {"requests": num_requests, "step_ms": round(total, 2), "parts_ms": parts}


def _decode_plan(step: int, num_requests: int) -> StepPlan:
    """Step 0 is a prompt of one token each, with 16 pages a request; then one token each."""
    slots = list(range(num_requests))
    if step:
        return StepPlan(step, "", decodes=slots)
    params = SamplingParams(temperature=0.0, max_tokens=1000)
    return StepPlan(
        step,
        "",
        admitted=[AdmittedRequest(n, n, [n * 7], params, start=0) for n in slots],
        pages=[NewPages(n, list(range(16 * n, 16 * n + 16))) for n in slots],
        chunks=[ChunkPlan(n, 1, sample=True) for n in slots],
    )


def time_verbs(ops: Operations, spent: dict[str, float]) -> None:
    """Adds up the time in each verb of the seam."""

    def timed(name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            result = verb(*args)
            spent[name] += time.perf_counter() - began
            return result

        return call

    for name in _VERBS:
        setattr(ops, name, timed(name, getattr(ops, name)))
