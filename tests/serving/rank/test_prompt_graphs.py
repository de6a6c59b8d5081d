"""Steps of a short prompt in the form of their graphs, padded to a fixed number of rows, against the same steps without
padding. In Triton's interpreter, where a stand-in for a graph computes the step again."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.serving.protocol.messages import ChunkPlan, NewPages, SnapshotPlan, StepPlan, StepResult
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.decode_graphs import Compute, StepOutput
from splitrank.serving.rank.gpu_steps import GpuSteps
from splitrank.serving.rank.prompt_graphs import PromptGraphs, PromptRows, PromptStep, graph_sizes, rows_of
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import TWO_LAYERS, make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import admitted, launch_spec, random_tokens

VOCABULARY, GREEDY = 300, SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.9, top_k=9, seed=3, presence_penalty=0.5)
# Experts leave the parts of padded rows unwritten, and numpy warns of what lies there, in the interpreter.
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning",
    "ignore:invalid value:RuntimeWarning",
    "ignore:All-NaN slice encountered:RuntimeWarning",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = random_text_config(**TWO_LAYERS, vocab_size=VOCABULARY)
    return write_checkpoint(make_reference(config, seed=3), tmp_path_factory.mktemp("prompts"), dtype="float32")


class Again:
    """Computes the step again into the tensors of the first time, as a graph does."""

    def __init__(self, step: PromptStep, compute: Compute) -> None:
        self._step, self._compute = step, compute
        self.output, self.replayed = step.run(compute), 0

    def replay(self) -> None:
        self.replayed += 1
        new = self._step.run(self._compute)
        for field in fields(StepOutput):
            if (kept := getattr(self.output, field.name)) is not None:
                kept.copy_(getattr(new, field.name))


def capture(step: PromptStep, compute: Compute, pool: Any) -> tuple[Any, StepOutput]:
    again = Again(step, compute)
    return again, again.output


def run(
    folder: Path, run_dir: Path, plans: list[StepPlan], sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[StepResult], Worker, int]:
    """Results, the closed worker, and how many of the steps were those of graphs."""
    monkeypatch.setattr(PromptGraphs, "_capture", staticmethod(capture))
    run_dir.mkdir()
    worker = Worker(launch_spec(folder, run_dir, device="cuda", devices=(0,)), 0)
    worker.load()
    steps = worker.steps
    assert isinstance(steps, GpuSteps)
    graphs = []
    if sizes:
        with torch.inference_mode():
            steps._prompts = PromptGraphs(worker.table, sizes, steps._compute, None, None)
        graphs = [graph for graph, _ in steps._prompts._graphs.values()]
    results = [result for plan in plans if (result := worker.execute(plan, "")) is not None]
    worker.close()
    return results, worker, sum(graph.replayed for graph in graphs)


def pages(*slots: int) -> list[NewPages]:
    """Eight pages of 16 tokens a slot, none of them page 0."""
    return [NewPages(slot, list(range(8 * slot + 1, 8 * slot + 9))) for slot in slots]


@pytest.mark.parametrize("chunks", [pytest.param([5], marks=pytest.mark.full), [64], [64, 3]])
def test_a_padded_prompt_is_the_prompt_without_padding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: list[int]
) -> None:
    """Its tokens, also those decoded after it, and nothing of a neighbour: slot 1 has decoded before, and goes on."""
    length = sum(chunks)
    tokens = random_tokens(length, VOCABULARY, seed=length)
    before = StepPlan(
        0, "", admitted=[admitted(0, 1, [7, 8, 9], GREEDY)], pages=pages(1), chunks=[ChunkPlan(1, 3, True)]
    )
    plans = [before]
    for number, count in enumerate(chunks):
        new = {} if number else {"admitted": [admitted(1, 0, tokens, SAMPLED)], "pages": pages(0)}
        last = number == len(chunks) - 1
        plans.append(StepPlan(len(plans), "", chunks=[ChunkPlan(0, count, last)], **new))
    plans += [StepPlan(len(plans) + number, "", decodes=[0, 1]) for number in range(2)]
    expected, plain, _ = run(folder, tmp_path / "plain", plans, (), monkeypatch)
    found, padded, replayed = run(folder, tmp_path / "padded", plans, (64,), monkeypatch)
    assert [result.token_ids for result in found] == [result.token_ids for result in expected]
    assert replayed == 2  # the end of each prompt
    assert torch.equal(padded.table.lengths[:2], plain.table.lengths[:2])
    for name, cache in padded.cache.layers.items():
        for part, tensor in vars(cache).items():
            wanted = getattr(plain.cache.layers[name], part)
            own = slice(0, 2) if part in ("conv", "delta", "pending") else slice(1, 17)
            torch.testing.assert_close(tensor[own], wanted[own], rtol=1e-4, atol=1e-5, equal_nan=True)


def table_of(length: int, done: int = 0, **params: Any) -> RequestTable:
    table = RequestTable(4, 16, 16, torch.device("cpu"), scratch_page=64)
    table.admit(admitted(0, 2, [1] * length, SamplingParams(**params)), None)
    table.set_length(2, done)
    return table


def test_which_steps_are_those_of_a_graph() -> None:
    end = ChunkPlan(2, 64, True)
    assert rows_of(table_of(64), 128, [end], []) == PromptRows(2, 0, 64)
    assert rows_of(table_of(128, done=64), 128, [end], []) == PromptRows(2, 64, 64)
    for table, most, chunks, saved in [
        (table_of(64), 63, [end], []),  # too long
        (table_of(80), 128, [ChunkPlan(2, 64, False)], []),  # not its end
        (table_of(64), 128, [end, end], []),
        (table_of(64), 128, [], []),
        (table_of(65, done=64), 128, [ChunkPlan(2, 1, True)], []),  # a decode row
        (table_of(64, prompt_logprobs=1), 128, [end], []),
        (table_of(100), 128, [ChunkPlan(2, 100, True)], [SnapshotPlan(0, 64, 2)]),  # a state inside is copied
    ]:
        assert rows_of(table, most, chunks, saved) is None


def test_a_size_needs_pages_for_its_padding() -> None:
    assert graph_sizes(table_of(1), 256) == (64, 128, 192, 256)
    assert graph_sizes(table_of(1), 200) == (64, 128, 192)
    assert graph_sizes(RequestTable(1, 5, 16, torch.device("cpu"), scratch_page=9), 256) == (64,)
