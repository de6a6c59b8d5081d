"""Snapshots on a real rank: what is copied inside a chunk, what a conversation begins from, what is left when idle."""

from pathlib import Path

import pytest
import torch

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import ChunkPlan, LaunchSpec, NewPages, SnapshotPlan, StepPlan, StepResult
from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.scheduler_loop import Loop
from tests.support.stage_runner import admitted, launch_spec, random_tokens

PROMPT = random_tokens(200, 384, seed=1)
PAGES = list(range(20, 33))
STATE_BYTES, PAGE_BYTES = 1000, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker")
    return write_checkpoint(make_reference(random_text_config(), seed=5), path, dtype="float32")


def start(folder: Path, run_dir: Path, **changes: object) -> Worker:
    torch.set_num_threads(1)
    sizes = {"state_bytes": STATE_BYTES, "kv_page_bytes": PAGE_BYTES, "prefix_cache_bytes": 10**6}
    worker = Worker(launch_spec(folder, run_dir, **(sizes | changes)), rank=0)
    worker.load()
    return worker


def compute(worker: Worker, number: int, tokens: list[int], **parts: list) -> list[int]:
    """The whole prompt as one chunk, in slot 1 in place of who has it, and the token after it."""
    here = worker.table.rows.get(1)
    plan = StepPlan(
        number,
        "",
        released=[here.request] if here else [],
        admitted=[admitted(number, 1, tokens)],
        pages=[NewPages(1, PAGES[: pages_needed(len(tokens), 16)])],
        chunks=[ChunkPlan(1, len(tokens), sample=True)],
        **parts,
    )
    result = worker.execute(plan, "")
    assert isinstance(result, StepResult)
    return result.token_ids


@pytest.mark.parametrize("position", [64, 100, 128, 199, 200])
def test_a_snapshot_anywhere_in_a_chunk_holds_the_state_there(folder: Path, tmp_path: Path, position: int) -> None:
    worker = start(folder, tmp_path)
    expected = compute(worker, 0, PROMPT)
    whole = worker.cache.save(torch.tensor(PAGES), 1)
    pages = PAGES[: pages_needed(position, 16)]
    assert compute(worker, 1, PROMPT, saved=[SnapshotPlan(7, position, 1)]) == expected
    if position % 64 == 0:  # the blocks of the chunked delta rule: it computes the same sums in the same order
        saved = worker.cache.save(torch.tensor(PAGES), 1)
        assert all(torch.equal(one, other) for one, other in zip(whole, saved, strict=True))
    compute(worker, 2, PROMPT[:position])
    stopped = worker.cache.save(torch.tensor(pages), 1)
    snapshot = worker._snapshots[7]
    filled = [slice(None, position - 16 * (len(pages) - 1)) if one.shape[1:2] == (16,) else None for one in stopped]
    for found, end, last in zip(snapshot, stopped, filled, strict=True):
        found, end = (found, end) if last is None else (found[-1, last], end[-1, last])
        torch.testing.assert_close(found, end, rtol=2e-5, atol=2e-6)
    for tensor in (tensor for state in worker.cache.layers.values() for tensor in state.tensors):
        tensor.fill_(7.0)  # whoever had these pages and slots meanwhile
    if position < len(PROMPT):
        others = list(range(40, 53))
        plan = StepPlan(
            3,
            "",
            admitted=[admitted(3, 3, PROMPT, start=position)],
            pages=[NewPages(3, others)],
            restored=[SnapshotPlan(7, position, 3)],
            chunks=[ChunkPlan(3, len(PROMPT) - position, sample=True)],
        )
        result = worker.execute(plan, "")
        assert isinstance(result, StepResult)
        assert result.token_ids == expected


def test_two_prompts_are_saved_in_one_step_one_of_them_twice(folder: Path, tmp_path: Path) -> None:
    worker = start(folder, tmp_path)
    other = random_tokens(130, 384, seed=2)
    plan = StepPlan(
        0,
        "",
        admitted=[admitted(0, 1, PROMPT), admitted(1, 5, other)],
        pages=[NewPages(1, PAGES), NewPages(5, list(range(9)))],
        chunks=[ChunkPlan(1, len(PROMPT), sample=True), ChunkPlan(5, len(other), sample=True)],
        saved=[SnapshotPlan(3, 128, 1), SnapshotPlan(4, 64, 5), SnapshotPlan(5, 64, 1)],
    )
    worker.execute(plan, "")
    for number, tokens, end in ((3, PROMPT, 128), (4, other, 64), (5, PROMPT, 64)):
        compute(worker, 10 + number, tokens[:end])
        stopped = worker.cache.save(torch.tensor(PAGES[: end // 16]), 1)
        for found, expected in zip(worker._snapshots[number], stopped, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_a_finished_request_is_kept_before_its_slot_and_pages_are_used_again(folder: Path, tmp_path: Path) -> None:
    worker = start(folder, tmp_path)
    compute(worker, 0, PROMPT)
    finished = worker.cache.save(torch.tensor(PAGES), 1)
    compute(worker, 1, PROMPT[::-1], kept=[SnapshotPlan(7, len(PROMPT), 1)])
    assert all(torch.equal(one, other) for one, other in zip(worker._snapshots[7], finished, strict=True))


def converse(spec: LaunchSpec, worker: Worker, repeats_answers: bool) -> tuple[list[list[int]], list[int]]:
    """Six turns: each answer, and the tokens of each prompt that came from the cache.

    The next prompt has the whole turn in it, or drops the generation marker and the first part of the answer.
    """
    loop, answers, cached = Loop(spec, executor=worker), [], []
    history = random_tokens(90, 384, seed=3)
    marker = [1, 2, 3, 4]
    for turn in range(6):
        prompt = history if repeats_answers else history + marker
        loop.add(str(turn), prompt, max_tokens=20 + turn, temperature=0.0)
        loop.run()
        answers.append(loop.tokens[str(turn)])
        cached.append(loop.ended[str(turn)].num_cached_tokens)
        history = history + answers[-1][0 if repeats_answers else 12 :] + random_tokens(30, 384, seed=50 + turn)
    return answers, cached


@pytest.mark.parametrize("page_size", [16, 24])
@pytest.mark.parametrize("repeats_answers", [True, False])
def test_a_conversation_is_answered_the_same_with_and_without_the_cache(
    folder: Path, tmp_path: Path, repeats_answers: bool, page_size: int
) -> None:
    worker = start(folder, tmp_path, page_size=page_size)
    without = start(folder, tmp_path, page_size=page_size, prefix_cache_bytes=0)
    answers, cached = converse(worker.spec, worker, repeats_answers)
    assert (answers, [0] * 6) == converse(without.spec, without, repeats_answers)
    # The whole of the turn before, but for its last token, once it was seen that answers come back; else whole blocks.
    assert cached == ([0, 64, 160, 212, 265, 319] if repeats_answers else [0, 64, 64, 128, 192, 192])


def test_nothing_is_left_on_an_idle_rank(folder: Path, tmp_path: Path) -> None:
    """Not even of a request that was aborted while its state lay in host memory."""
    worker = start(folder, tmp_path, num_pages=6)
    loop = Loop(worker.spec, executor=worker)
    for name in ("old", "young"):
        loop.add(name, random_tokens(32, 384, seed=len(name)), max_tokens=60, temperature=0.0)
    while not worker._swapped:
        loop.plan()
        loop.commit()
    loop.abort("young")
    loop.abort("old")
    assert ([row.request for row in worker.table.rows.values()], worker._swapped.keys()) == ([0], {1})
    loop.run()
    assert (worker.table.rows, worker._swapped) == ({}, {})
