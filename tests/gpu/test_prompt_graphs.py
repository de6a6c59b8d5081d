"""Steps of short prompts as CUDA graphs against the same steps launched kernel by kernel, at the widths of
Qwen3.5-35B-A3B, four layers of dummy weights in float32."""

import json
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs 1 GPU, this machine has 0", allow_module_level=True)

from scripts.bench_gpu import config_35b
from splitrank.serving.rank.gpu_steps import GpuSteps
from splitrank.serving.rank.prompt_graphs import PromptGraphs, PromptRows
from tests.support.stage_runner import StageRunner, random_tokens, relative_error

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

VOCABULARY, LONGEST = 8192, 400
# A padded prompt may be computed by the tiles of more rows: sums in another order (as in tests/gpu/test_layouts.py).
BOUND = 1e-4


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageRunner]:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "config.json").write_text(json.dumps(config_35b(4) | {"vocab_size": VOCABULARY}))
    runner = StageRunner(
        folder, folder, device="cuda", devices=(0,), load_format="dummy", page_size=64, num_pages=64,
        max_model_len=1024, max_running_requests=8, chunked_prefill_size=1024, max_prefill_tokens=1024,
        prompt_graphs=True, load_timeout_s=300.0,
    )  # fmt: skip
    yield runner
    runner.worker.close()


@torch.inference_mode()
def logits(runner: StageRunner, chunks: list[int], by_graphs: bool) -> torch.Tensor:
    """Of the last token of a prompt in ``chunks``, of which the last is sampled, and of four tokens behind it."""
    steps, table, found = runner.worker.steps, runner.worker.table, []
    assert isinstance(steps, GpuSteps)
    sequence, tokens = runner.start(LONGEST + 8), random_tokens(sum(chunks) + 4, VOCABULARY, seed=sum(chunks))
    graphs, steps._prompts = steps._prompts, steps._prompts if by_graphs else None
    for count in chunks:
        share = sequence.take(tokens[sequence.length : sequence.length + count])
        planned = steps.make_batch([], [share.enter(table)], ())
        assert isinstance(planned.batch, PromptRows) == (by_graphs and count <= 256)
        output = steps.forward(planned, None)
        table.advance(planned.host_slots, planned.ends)
        found.append(output.logits[:1].float().clone())
    steps._prompts = graphs
    found = found[-1:] + [runner.step(sequence.generated(token))[0].float() for token in tokens[-4:]]
    runner.end(sequence)
    return torch.cat(found)


@pytest.mark.parametrize("chunks", [[2], [63], [64], [65], [130], [256], [320, 17], [64, 64]], ids=str)
def test_a_graph_computes_what_launches_compute(runner: StageRunner, chunks: list[int]) -> None:
    """Also the states and pages it leaves behind, from which the tokens after it are computed."""
    expected, found = (logits(runner, chunks, by_graphs) for by_graphs in (False, True))
    assert found.isfinite().all()
    assert relative_error(found, expected) <= BOUND


def test_graphs_are_captured_for_every_size(runner: StageRunner) -> None:
    steps = runner.worker.steps
    assert isinstance(steps, GpuSteps)
    assert isinstance(steps._prompts, PromptGraphs)
    assert list(steps._prompts._steps) == [64, 128, 192, 256]
