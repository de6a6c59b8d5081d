"""One rank at 1 x 1: steps in, results out; swapping, releasing, and what is remembered."""

from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.serving.protocol.messages import (
    ChunkPlan,
    NewPages,
    RowFailure,
    SnapshotPlan,
    StepPlan,
    StepResult,
    SwapPlan,
)
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import admitted, launch_spec, random_tokens

GREEDY = SamplingParams(temperature=0.0, max_tokens=100)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=100, seed=7)
PROMPT = random_tokens(40, 384, seed=1)
PAGES = [9, 3, 20, 14, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker")
    return write_checkpoint(make_reference(random_text_config(), seed=5), path, dtype="float32")


@pytest.fixture
def worker(folder: Path, tmp_path: Path) -> Worker:
    torch.set_num_threads(1)
    worker = Worker(launch_spec(folder, tmp_path), rank=0)
    worker.load()
    return worker


class Steps:
    """Executes plans with numbers and hashes of their own."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.number = worker, -1

    def __call__(self, **parts: list) -> StepResult:
        self.number += 1
        plan = StepPlan(self.number, "", **parts)
        result = self.worker.execute(plan, f"{self.number:016x}")
        assert isinstance(result, StepResult)
        assert (result.step, result.plan_hash) == (self.number, f"{self.number:016x}")
        num_sampled = len(plan.decodes) + sum(chunk.sample for chunk in plan.chunks)
        assert len(result.token_ids) == num_sampled
        assert result.logprobs == {}
        return result

    def begin(
        self,
        request: int,
        slot: int,
        pages: list[int],
        prompt: list[int] = PROMPT,
        params: SamplingParams = GREEDY,
        **parts: list,
    ) -> list[int]:
        """Computes a whole prompt; the token after it."""
        new = admitted(request, slot, prompt, params)
        chunk = ChunkPlan(slot, len(prompt), sample=True)
        return self(admitted=[new], pages=[NewPages(slot, pages)], chunks=[chunk], **parts).token_ids

    def decode(self, slot: int, count: int) -> list[int]:
        """``count`` more tokens."""
        return [token for _ in range(count) for token in self(decodes=[slot]).token_ids]

    def generate(self, request: int, slot: int, pages: list[int], count: int, **changes: Any) -> list[int]:
        """``count`` tokens after a prompt."""
        return self.begin(request, slot, pages, **changes) + self.decode(slot, count - 1)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_swapped_out_and_in_elsewhere_a_request_continues_with_the_same_bits(
    worker: Worker, folder: Path, tmp_path: Path, params: SamplingParams
) -> None:
    steps = Steps(worker)
    expected = steps.generate(1, 0, PAGES, 12, params=params)
    first = steps.generate(2, 5, [30, 31, 32], 4, params=params)
    saved = [t.clone() for t in worker.cache.save(torch.tensor([30, 31, 32]), 5)]
    steps(swap_out=[SwapPlan(2, 5)])
    soil(worker, torch.nan)  # whoever had these pages meanwhile
    steps(swap_in=[SwapPlan(2, 2)], pages=[NewPages(2, [40, 6, 11])])
    restored = worker.cache.save(torch.tensor([40, 6, 11]), 2)
    assert all(torch.equal(before, after) for before, after in zip(saved, restored, strict=True))
    steps(pages=[NewPages(2, [50])])
    assert first + steps.decode(2, 8) == expected


def test_one_step_may_swap_one_out_and_another_into_its_place(worker: Worker) -> None:
    steps = Steps(worker)
    expected = steps.generate(1, 0, PAGES, 6)
    steps.begin(2, 1, [30, 31, 32], prompt=PROMPT[::-1])
    steps(swap_out=[SwapPlan(1, 0)])
    steps(swap_out=[SwapPlan(2, 1)], swap_in=[SwapPlan(1, 1)], pages=[NewPages(1, [30, 31, 32, 33, 34])])
    assert worker._swapped.keys() == {2}
    moved = steps.decode(1, 5)
    assert expected + moved == steps.generate(3, 4, [50, 51, 52, 53], 11)


def soil(worker: Worker, value: float) -> None:
    for state in worker.cache.layers.values():
        for tensor in state.tensors:
            tensor.fill_(value)


@pytest.mark.parametrize("left_behind", [torch.nan, torch.inf])
def test_a_request_starts_clean_whatever_was_left_behind(worker: Worker, left_behind: float) -> None:
    steps = Steps(worker)
    expected = steps.generate(1, 0, PAGES, 8)
    soil(worker, left_behind)
    assert steps.generate(2, 0, PAGES, 8, released=[1]) == expected
    soil(worker, left_behind)
    steps(  # a prompt's first token alone, then its rest
        released=[2],
        admitted=[admitted(3, 4, PROMPT)],
        pages=[NewPages(4, PAGES[::-1])],
        chunks=[ChunkPlan(4, 1, sample=False)],
    )
    rest = steps(chunks=[ChunkPlan(4, len(PROMPT) - 1, sample=True)]).token_ids
    assert rest + steps.decode(4, 7) == expected


@pytest.mark.parametrize("left_behind", [torch.nan, torch.inf])
def test_a_snapshot_is_restored_whatever_was_left_behind(worker: Worker, left_behind: float) -> None:
    """Of 24 tokens, which end in the middle of a page."""
    steps = Steps(worker)
    soil(worker, left_behind)
    steps(
        admitted=[admitted(1, 0, PROMPT)],
        pages=[NewPages(0, PAGES[:2])],
        chunks=[ChunkPlan(0, 24, sample=False)],
        saved=[SnapshotPlan(snapshot=0, num_tokens=24, slot=0)],
    )
    rest = ChunkPlan(0, len(PROMPT) - 24, sample=True)
    expected = steps(pages=[NewPages(0, PAGES[2:])], chunks=[rest]).token_ids + steps.decode(0, 7)
    soil(worker, left_behind)
    first = steps(
        admitted=[admitted(2, 3, PROMPT, start=24)],
        pages=[NewPages(3, [30, 31, 32])],
        chunks=[ChunkPlan(3, len(PROMPT) - 24, sample=True)],
        restored=[SnapshotPlan(snapshot=0, num_tokens=24, slot=3)],
    ).token_ids
    assert first + steps.decode(3, 7) == expected


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_of_nan_is_a_failure_of_its_own(worker: Worker, params: SamplingParams) -> None:
    """An embedding row that nobody trained: its request fails, in prefill and beside others in decode."""
    steps = Steps(worker)
    worker.model.embed_tokens.weight.data[383] = torch.nan
    expected = steps.generate(1, 0, PAGES, 2, prompt=PROMPT[:30], params=params)
    both = steps(
        admitted=[admitted(2, 1, [5, 383, 6], params), admitted(3, 2, PROMPT[:30], params)],
        pages=[NewPages(1, [30, 31]), NewPages(2, [40, 41, 42])],
        chunks=[ChunkPlan(1, 3, sample=True), ChunkPlan(2, 30, sample=True)],
    )
    failure = RowFailure("invalid_numbers", "the model's logits for output token 0 hold NaN")
    assert both.failures == {0: failure}
    assert both.token_ids[1:] == expected[:1]
    again = steps(decodes=[1, 2])
    assert again.failures == {0: failure}
    assert again.token_ids[1:] == expected[1:]


def test_released_requests_are_forgotten(worker: Worker) -> None:
    steps = Steps(worker)
    steps.begin(1, 0, PAGES)
    steps.begin(2, 3, [30, 31, 32])
    steps(swap_out=[SwapPlan(1, 0)])
    assert [row.request for row in worker.table.rows.values()] == [2]
    assert worker._swapped.keys() == {1}
    steps(released=[1, 2, 99])  # 99 was aborted before any step knew it
    assert worker.table.rows == {}
    assert worker._swapped == {}


def test_an_empty_plan_gives_an_empty_result(worker: Worker) -> None:
    result = Steps(worker)()
    assert (result.token_ids, result.logprobs) == ([], {})


def test_a_chunk_that_is_not_sampled_gives_no_token(worker: Worker) -> None:
    chunk = ChunkPlan(0, len(PROMPT), sample=False)
    result = Steps(worker)(admitted=[admitted(1, 0, PROMPT)], pages=[NewPages(0, PAGES)], chunks=[chunk])
    assert result.token_ids == []


def test_results_stand_in_plan_order(worker: Worker) -> None:
    """Decodes, then chunks; a chunk of one token is computed with the decode rows, and keeps its place."""
    steps = Steps(worker)
    (first,) = steps.begin(3, 4, [50, 51, 52], prompt=PROMPT[:30])
    decoded = steps.generate(1, 0, PAGES, 2)
    steps.begin(2, 1, [30, 31, 32])
    steps(
        released=[3],
        admitted=[admitted(4, 5, PROMPT)],
        pages=[NewPages(5, [60, 61, 62])],
        chunks=[ChunkPlan(5, 39, sample=False)],
    )
    result = steps(
        admitted=[admitted(5, 4, PROMPT[:30])],
        pages=[NewPages(4, [50, 51, 52])],
        decodes=[1],
        chunks=[ChunkPlan(4, 30, sample=True), ChunkPlan(5, 1, sample=True)],
    )
    assert result.token_ids == [decoded[1], first, decoded[0]]


def test_the_report_names_the_rank_and_planned_is_allocated(folder: Path, tmp_path: Path) -> None:
    report = Worker(launch_spec(folder, tmp_path, num_pages=10), rank=0).load()
    assert report.startswith("rank 0 (stage 0, tp 0)  layers 0-3  weights ")
    assert "B = planned" in report
