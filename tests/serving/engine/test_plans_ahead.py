"""The loop that plans ahead against the simple one, on a real rank: the same tokens, with everything that changes them.

Requests come together or one after another, sampled with penalties, bias, bans of stop tokens, stop tokens; some are
aborted, and with few pages some are swapped out.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.scheduler_loop import Loop
from tests.support.stage_runner import launch_spec, random_tokens

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 5},
    "repetition": {"temperature": 1.0, "seed": 6, "repetition_penalty": 1.7},
    "counts": {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 1.5},
    "bias": {"temperature": 1.0, "seed": 7, "logit_bias": {3: 8.0, 5: 7.0}},
    "stops": {"temperature": 1.0, "seed": 8, "stop_token_ids": tuple(range(0, 384, 9))},
    "minimum": {"temperature": 1.0, "seed": 9, "stop_token_ids": tuple(range(0, 384, 3)), "min_tokens": 12},
    "logprobs": {"temperature": 1.0, "seed": 10, "logprobs": 2},
    "one token": {"temperature": 1.0, "seed": 11, "max_tokens": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ahead")
    return write_checkpoint(make_reference(random_text_config(), seed=5), path, dtype="float32")


def answers(folder: Path, run_dir: Path, plans_ahead: bool, **changes: object) -> tuple[dict[str, list[int]], Loop]:
    torch.set_num_threads(1)
    worker = Worker(launch_spec(folder, run_dir, **changes), rank=0)
    worker.load()
    loop = Loop(worker.spec, executor=worker, plans_ahead=plans_ahead)
    for number, (name, params) in enumerate(REQUESTS.items()):
        loop.add(name, random_tokens(20 + 13 * number, 384, seed=number), **({"max_tokens": 25} | params))
        if number % 2:
            loop.plan()
            loop.commit()
    loop.add("aborted", random_tokens(9, 384), max_tokens=90, temperature=0.0)
    for _ in range(4):
        loop.plan()
        loop.commit()
    loop.abort("aborted")
    loop.run()
    assert (worker.table.rows, worker._swapped) == ({}, {})
    return {name: loop.tokens[name] for name in REQUESTS}, loop


@pytest.mark.parametrize("num_pages", [400, 70])
def test_both_loops_give_the_same_tokens(folder: Path, tmp_path: Path, num_pages: int) -> None:
    changes = {"num_pages": num_pages, "page_size": 2, "prefix_cache_bytes": 0, "max_model_len": 200}
    simple, loop = answers(folder, tmp_path, plans_ahead=False, **changes)
    ahead, other = answers(folder, tmp_path, plans_ahead=True, **changes)
    assert ahead == simple
    ends = {name: end.finish_reason for name, end in loop.ended.items()}
    assert ends == {name: end.finish_reason for name, end in other.ended.items()}
    assert list(ends.values()).count("stop") >= 2
    for one in (loop, other):
        assert (one.scheduler.stats().preemptions > 0) == (num_pages == 70)
