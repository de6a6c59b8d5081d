"""One rank at 1 x 1: steps in, results out; swapping, releasing, and what is remembered."""

from pathlib import Path

import pytest
import torch

from splitrank.serving.messages import AdmittedRequest, RowFailure, SequencePlan, SnapshotPlan, StepResult, SwapPlan
from splitrank.serving.sampling_params import SamplingParams
from splitrank.serving.worker import Worker
from tests.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.stage_runner import launch_spec, random_tokens, step_plan

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

    def __call__(self, sequences: list[SequencePlan], **parts: list) -> StepResult:
        self.number += 1
        result = self.worker.execute(step_plan(sequences, self.number, **parts), f"{self.number:016x}")
        assert isinstance(result, StepResult)
        assert (result.step, result.plan_hash) == (self.number, f"{self.number:016x}")
        assert len(result.token_ids) == len(result.logprobs) == sum(sequence.sample for sequence in sequences)
        return result

    def generate(
        self, request: int, slot: int, pages: list[int], tokens: list[int], length: int, count: int
    ) -> list[int]:
        """``count`` tokens after ``tokens``, the first of which stands at position ``length``."""
        output: list[int] = []
        for _ in range(count):
            result = self([SequencePlan(request, slot, length, tokens, pages, True)])
            length, tokens = length + len(tokens), result.token_ids
            output += tokens
        return output


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_swapped_out_and_in_elsewhere_a_request_continues_with_the_same_bits(
    worker: Worker, folder: Path, tmp_path: Path, params: SamplingParams
) -> None:
    steps = Steps(worker)
    steps([], admitted=[AdmittedRequest(1, PROMPT, params), AdmittedRequest(2, PROMPT, params)])
    expected = steps.generate(1, 0, PAGES, PROMPT, 0, 12)
    first = steps.generate(2, 5, [30, 31, 32], PROMPT, 0, 4)
    length = len(PROMPT) + 3
    saved = [t.clone() for t in worker.cache.save(torch.tensor([30, 31, 32]), 5)]
    steps([], swap_out=[SwapPlan(2, 5, [30, 31, 32])])
    soil(worker, torch.nan)  # whoever had these pages meanwhile
    steps([], swap_in=[SwapPlan(2, 2, [40, 6, 11])])
    restored = worker.cache.save(torch.tensor([40, 6, 11]), 2)
    assert all(torch.equal(before, after) for before, after in zip(saved, restored, strict=True))
    assert first + steps.generate(2, 2, [40, 6, 11, 50], first[-1:], length, 8) == expected


def test_one_step_may_swap_one_out_and_another_into_its_place(worker: Worker) -> None:
    steps = Steps(worker)
    steps([], admitted=[AdmittedRequest(number, PROMPT, GREEDY) for number in (1, 2)])
    expected = steps.generate(1, 0, PAGES, PROMPT, 0, 6)
    steps.generate(2, 1, [30, 31, 32], PROMPT[::-1], 0, 1)
    steps([], swap_out=[SwapPlan(1, 0, PAGES)])
    length, last = len(PROMPT) + 5, expected[-1:]
    steps([], swap_out=[SwapPlan(2, 1, [30, 31, 32])], swap_in=[SwapPlan(1, 1, [30, 31, 32, 33, 34])])
    assert worker._swapped.keys() == {2}
    moved = steps.generate(1, 1, [30, 31, 32, 33, 34], last, length, 5)
    steps([], admitted=[AdmittedRequest(3, PROMPT, GREEDY)])
    assert expected + moved == steps.generate(3, 4, [50, 51, 52, 53], PROMPT, 0, 11)


def soil(worker: Worker, value: float) -> None:
    for state in worker.cache.layers.values():
        for tensor in vars(state).values():
            tensor.fill_(value)


@pytest.mark.parametrize("left_behind", [torch.nan, torch.inf])
def test_a_request_starts_clean_whatever_was_left_behind(worker: Worker, left_behind: float) -> None:
    steps = Steps(worker)
    steps([], admitted=[AdmittedRequest(number, PROMPT, GREEDY) for number in (1, 2, 3)])
    expected = steps.generate(1, 0, PAGES, PROMPT, 0, 8)
    soil(worker, left_behind)
    assert steps.generate(2, 0, PAGES, PROMPT, 0, 8) == expected
    soil(worker, left_behind)
    one_by_one = steps.generate(3, 4, PAGES[::-1], PROMPT[:1], 0, 1)  # a prompt's first token alone, then its rest
    assert len(one_by_one) == 1
    assert steps.generate(3, 4, PAGES[::-1], PROMPT[1:], 1, 8) == expected


@pytest.mark.parametrize("left_behind", [torch.nan, torch.inf])
def test_a_snapshot_is_restored_whatever_was_left_behind(worker: Worker, left_behind: float) -> None:
    """Of 24 tokens, which end in the middle of a page."""
    steps = Steps(worker)
    steps([], admitted=[AdmittedRequest(number, PROMPT, GREEDY) for number in (1, 2)])
    soil(worker, left_behind)
    steps(
        [SequencePlan(1, 0, 0, PROMPT[:24], PAGES[:2], False)],
        saved=[SnapshotPlan(snapshot=0, num_tokens=24, slot=0, pages=PAGES[:2])],
    )
    expected = steps.generate(1, 0, PAGES, PROMPT[24:], 24, 8)
    soil(worker, left_behind)
    table = [30, 31, 32, 33]
    first = steps(
        [SequencePlan(2, 3, 24, PROMPT[24:], table, True)],
        restored=[SnapshotPlan(snapshot=0, num_tokens=24, slot=3, pages=table[:2])],
    ).token_ids
    assert first + steps.generate(2, 3, table, first, len(PROMPT), 7) == expected


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_of_nan_is_a_failure_of_its_own(worker: Worker, params: SamplingParams) -> None:
    """An embedding row that nobody trained: its request fails, in prefill and beside others in decode."""
    steps = Steps(worker)
    worker.model.embed_tokens.weight.data[383] = torch.nan
    steps([], admitted=[AdmittedRequest(number, PROMPT, params) for number in (1, 2, 3)])
    expected = steps.generate(1, 0, PAGES, PROMPT[:30], 0, 2)
    both = steps(
        [SequencePlan(2, 1, 0, [5, 383, 6], [30, 31], True), SequencePlan(3, 2, 0, PROMPT[:30], [40, 41, 42], True)]
    )
    failure = RowFailure("invalid_numbers", "the model's logits for output token 0 hold NaN")
    assert both.failures == {0: failure}
    assert both.token_ids[1:] == expected[:1]
    again = steps(
        [
            SequencePlan(2, 1, 3, [5], [30, 31], True),
            SequencePlan(3, 2, 30, expected[:1], [40, 41, 42], True),
        ]
    )
    assert again.failures == {0: failure}
    assert again.token_ids[1:] == expected[1:]


def test_released_requests_are_forgotten(worker: Worker) -> None:
    steps = Steps(worker)
    steps([SequencePlan(1, 0, 0, PROMPT, PAGES, True)], admitted=[AdmittedRequest(n, PROMPT, GREEDY) for n in (1, 2)])
    steps([], swap_out=[SwapPlan(1, 0, PAGES)])
    assert worker._sampling.keys() == {1, 2}
    assert worker._swapped.keys() == {1}
    steps([], released=[1, 2, 99])  # 99 was aborted before any step knew it
    assert worker._sampling == {}
    assert worker._swapped == {}


def test_an_empty_plan_gives_an_empty_result(worker: Worker) -> None:
    result = Steps(worker)([])
    assert (result.token_ids, result.logprobs) == ([], [])


def test_a_chunk_that_is_not_sampled_gives_no_token(worker: Worker) -> None:
    result = Steps(worker)([SequencePlan(1, 0, 0, PROMPT, PAGES, False)], admitted=[AdmittedRequest(1, PROMPT, GREEDY)])
    assert result.token_ids == []


def test_results_stand_in_plan_order(worker: Worker) -> None:
    """The model computes decode rows first; the plan lists a prefill first."""
    steps = Steps(worker)
    steps([], admitted=[AdmittedRequest(n, PROMPT, GREEDY) for n in (1, 2, 3)])
    (expected_first,) = steps.generate(3, 4, [50, 51, 52], PROMPT[:30], 0, 1)
    expected_second = steps.generate(1, 0, PAGES, PROMPT, 0, 2)
    steps.generate(2, 1, [30, 31, 32], PROMPT, 0, 1)
    sequences = [
        SequencePlan(3, 4, 0, PROMPT[:30], [50, 51, 52], True),
        SequencePlan(2, 1, 40, expected_second[:1], [30, 31, 32], True),
    ]
    assert steps(sequences).token_ids == [expected_first, expected_second[1]]


def test_the_report_names_the_rank_and_planned_is_allocated(folder: Path, tmp_path: Path) -> None:
    report = Worker(launch_spec(folder, tmp_path, num_pages=10), rank=0).load()
    assert report.startswith("rank 0 (stage 0, tp 0)  layers 0-3  weights ")
    assert "B = planned" in report
