"""Log probabilities of prompts against the logits of all rows: in chunks, and beside others.

``test_gpu_steps.py`` compares those of a GPU with these.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from splitrank.serving.protocol.messages import ChunkPlan, NewPages, StepPlan, StepResult, TokenLogprobs
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank import prompt_logprobs
from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import TWO_LAYERS, make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import StageRunner, admitted, launch_spec, random_tokens

VOCABULARY = 300
PROMPT = random_tokens(40, VOCABULARY, seed=1)
OTHER = random_tokens(9, VOCABULARY, seed=2)
ASKS = SamplingParams(temperature=0.0, max_tokens=9, prompt_logprobs=3)
ASKS_NO_TOP = SamplingParams(temperature=0.0, max_tokens=9, prompt_logprobs=0)
SILENT = SamplingParams(temperature=0.0, max_tokens=9)
PLANS = [
    StepPlan(  # a prompt cut inside a page, one that does not ask, and one of a single token, which has nothing to tell
        0, "",
        admitted=[admitted(7, 1, PROMPT, ASKS), admitted(8, 2, OTHER, SILENT), admitted(9, 3, [5], ASKS)],
        pages=[NewPages(1, [3, 1, 9]), NewPages(2, [4]), NewPages(3, [5])],
        chunks=[ChunkPlan(1, 24, False), ChunkPlan(2, 9, True), ChunkPlan(3, 1, True)],
    ),
    StepPlan(  # a chunk of one token, which is computed as a decode row, behind real ones
        1, "", decodes=[2, 3], chunks=[ChunkPlan(1, 1, False)],
    ),
    StepPlan(
        2, "", decodes=[3], admitted=[admitted(10, 4, OTHER, ASKS_NO_TOP)], pages=[NewPages(4, [6])],
        chunks=[ChunkPlan(4, 9, True), ChunkPlan(1, 15, True)],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = make_reference(random_text_config(**TWO_LAYERS, vocab_size=VOCABULARY), seed=3)
    return write_checkpoint(reference, tmp_path_factory.mktemp("prompts"), dtype="float32")


@pytest.fixture(scope="module")
def logits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, torch.Tensor]]:
    """Of all rows, by the number of tokens of the prompt."""
    runner = StageRunner(folder, tmp_path_factory.mktemp("run"))
    yield {len(tokens): runner.prefill(runner.start(64, slot), tokens) for slot, tokens in enumerate((PROMPT, OTHER))}
    runner.worker.close()


def run(folder: Path, run_dir: Path, plans: list[StepPlan]) -> list[StepResult]:
    worker = Worker(launch_spec(folder, run_dir), 0)
    worker.load()
    results = [worker.execute(plan, "") for plan in plans]
    worker.close()
    return [result for result in results if result is not None]


def check(found: list[TokenLogprobs], logits: torch.Tensor, targets: list[int], num_top: int, begin: int) -> None:
    expected = logits.double().log_softmax(-1)[begin : begin + len(targets)]
    assert len(found) == len(targets)
    for one, row, target in zip(found, expected, targets, strict=True):
        best = row.topk(num_top)
        assert one.logprob == pytest.approx(float(row[target]), abs=1e-4)
        assert one.rank == int((row > row[target]).sum()) + 1
        assert one.top_ids == best.indices.tolist()
        assert one.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("rows_at_once", [1000, 5])
def test_every_token_but_the_first_has_one_in_whatever_chunks(
    folder: Path,
    tmp_path: Path,
    logits: dict[int, torch.Tensor],
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt_logprobs, "MAX_LOGITS", rows_at_once * VOCABULARY)
    first, second, third = run(folder, tmp_path, PLANS)
    assert [result.prompt_logprobs.keys() for result in (first, second, third)] == [{7}, {7}, {7, 10}]
    check(first.prompt_logprobs[7], logits[40], PROMPT[1:25], 3, begin=0)
    check(second.prompt_logprobs[7], logits[40], PROMPT[25:26], 3, begin=24)
    check(third.prompt_logprobs[7], logits[40], PROMPT[26:], 3, begin=25)
    check(third.prompt_logprobs[10], logits[9], OTHER[1:], 0, begin=0)
    assert [len(result.token_ids) for result in (first, second, third)] == [2, 2, 3]


def test_only_rows_that_are_asked_for_have_logits_and_few_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "MAX_LOGITS", 10 * VOCABULARY)
    worker = Worker(launch_spec(folder, tmp_path), 0)
    worker.load()
    sizes: list[int] = []
    head = worker.model.lm_head.forward

    def counted(states: object, batch: object, *others: object) -> torch.Tensor:
        sizes.append(batch.num_samples)  # type: ignore[attr-defined]
        return head(states, batch, *others)

    monkeypatch.setattr(worker.model.lm_head, "forward", counted)
    worker.execute(PLANS[0], "")
    assert sizes == [10, 10, 4, 2]  # of the prompt that asks, then the rows that are sampled
    worker.execute(PLANS[1], "")
    assert sizes[4:] == [1, 2]
    worker.close()
