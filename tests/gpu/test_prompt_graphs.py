"""Steps of short prompts as CUDA graphs against the launches that they were captured from, bit by bit, at the widths of
Qwen3.5-35B-A3B, four layers of dummy weights. That padding changes nothing is shown in float32, by
``tests/serving/rank/test_prompt_graphs.py``.
"""

import json
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs 1 GPU, this machine has 0", allow_module_level=True)

from scripts.bench_gpu import config_35b
from splitrank.serving.rank.decode_graphs import StepOutput
from splitrank.serving.rank.gpu_steps import GpuSteps
from splitrank.serving.rank.prompt_graphs import PromptGraphs, PromptRows, PromptStep
from tests.support.stage_runner import StageRunner, random_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

VOCABULARY, LONGEST = 8192, 400
SIZES = [64, 128, 192, 256]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageRunner]:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "config.json").write_text(json.dumps(config_35b(4) | {"vocab_size": VOCABULARY}))
    runner = StageRunner(
        folder, folder, device="cuda", devices=(0,), dtype="bfloat16", load_format="dummy", page_size=64, num_pages=64,
        max_model_len=1024, max_running_requests=8, chunked_prefill_size=1024, max_prefill_tokens=1024,
        prompt_graphs=True, load_timeout_s=300.0,
    )  # fmt: skip
    yield runner
    runner.worker.close()


def prompts_of(runner: StageRunner) -> PromptGraphs:
    steps = runner.worker.steps
    assert isinstance(steps, GpuSteps)
    assert steps._prompts is not None
    return steps._prompts


class Launches:
    """What a graph was captured from, launched kernel by kernel, into the graph's own output."""

    def __init__(self, steps: GpuSteps, step: PromptStep, output: StepOutput) -> None:
        self._steps, self._step, self._output = steps, step, output

    def replay(self) -> None:
        new = self._step.run(self._steps._compute)
        for field in fields(StepOutput):
            if (kept := getattr(self._output, field.name)) is not None:
                kept.copy_(getattr(new, field.name))


@torch.inference_mode()
def logits(runner: StageRunner, chunks: list[int]) -> torch.Tensor:
    """Of the last token of a prompt, in steps of ``chunks``, and of four tokens behind it."""
    steps, table, found = runner.worker.steps, runner.worker.table, []
    sequence, tokens = runner.start(LONGEST + 8), random_tokens(sum(chunks) + 4, VOCABULARY, seed=sum(chunks))
    for count in chunks:
        share = sequence.take(tokens[sequence.length : sequence.length + count])
        planned = steps.make_batch([], [share.enter(table)], ())
        assert isinstance(planned.batch, PromptRows) == (count <= SIZES[-1])
        output = steps.forward(planned, None)
        assert isinstance(output, StepOutput)
        assert output.logits is not None
        table.advance(planned.host_slots, planned.ends)
        found.append(output.logits[:1].clone())
    found = [found[-1], *(runner.step(sequence.generated(token))[0] for token in tokens[-4:])]
    runner.end(sequence)
    return torch.cat(found)


@pytest.mark.parametrize("chunks", [[2], [63], [64], [65], [130], [256], [320, 17], [64, 64]], ids=str)
def test_a_graph_computes_what_its_launches_compute(
    runner: StageRunner, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the states and pages that it leaves behind, from which the tokens after it are computed."""
    found, prompts = logits(runner, chunks), prompts_of(runner)
    launches = {
        size: (Launches(runner.worker.steps, prompts._steps[size], output), output)
        for size, (_, output) in prompts._graphs.items()
    }
    monkeypatch.setattr(prompts, "_graphs", launches)
    assert torch.equal(found, logits(runner, chunks))
    assert found.isfinite().all()
    assert len(found.unique(dim=0)) == 5


def test_graphs_are_captured_for_every_size(runner: StageRunner) -> None:
    assert list(prompts_of(runner)._steps) == SIZES
