"""A whole worker on a GPU against one on the CPU: the same plans, the same tokens. Interpreted where there is no GPU.

float32 and two layers, one of each kind: a token could differ only if two candidates were closer than rounding, which
these seeds do not give.
"""

from pathlib import Path

import pytest
import torch

from splitrank.models.config import read_config
from splitrank.models.exactness import check_exact_gpu_shapes
from splitrank.serving.protocol.messages import (
    ChunkPlan,
    NewPages,
    SnapshotPlan,
    StepPlan,
    StepResult,
    SwapPlan,
    TokenLogprobs,
)
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.decode_graphs import DecodeStep
from splitrank.serving.rank.gpu_steps import GpuSteps, likeliest_of_ranks
from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import TWO_LAYERS, make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import admitted, launch_spec, random_tokens

VOCABULARY = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = random_text_config(**TWO_LAYERS, vocab_size=VOCABULARY)
    return write_checkpoint(make_reference(config, seed=3), tmp_path_factory.mktemp("steps"), dtype="float32")


def run(folder: Path, run_dir: Path, device: str, plans: list[StepPlan]) -> tuple[list[StepResult], Worker]:
    run_dir.mkdir()
    worker = Worker(launch_spec(folder, run_dir, device=device, devices=(0,)), 0)
    worker.load()
    results = [result for plan in plans if (result := worker.execute(plan, "")) is not None]
    worker.close()
    return results, worker


def both(folder: Path, run_dir: Path, plans: list[StepPlan]) -> tuple[list[StepResult], list[StepResult]]:
    return run(folder, run_dir / "cpu", "cpu", plans)[0], run(folder, run_dir / "gpu", "cuda", plans)[0]


def prompt(length: int) -> list[int]:
    return random_tokens(length, VOCABULARY, seed=length)


def pages(*slots: int) -> list[NewPages]:
    """Eight pages of 16 tokens a slot, none of them page 0."""
    return [NewPages(slot, list(range(8 * slot + 1, 8 * slot + 9))) for slot in slots]


def test_mixed_steps_sampling_swaps_and_logprobs(folder: Path, tmp_path: Path) -> None:
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, top_k=20, top_p=0.9, seed=5, prompt_logprobs=2),
        SamplingParams(temperature=0.0, logprobs=2),
        SamplingParams(temperature=0.8, seed=1, presence_penalty=0.5),
    ]
    new = [admitted(n, n, prompt(length), params[n]) for n, length in enumerate((20, 70, 3, 5))]
    chunks = [ChunkPlan(0, 20, True), ChunkPlan(1, 64, False), ChunkPlan(2, 3, True), ChunkPlan(3, 5, True)]
    plans = [
        StepPlan(0, "", admitted=new, pages=pages(0, 1, 2, 3), chunks=chunks),
        StepPlan(1, "", decodes=[0, 2, 3], chunks=[ChunkPlan(1, 6, True)]),
        StepPlan(2, "", decodes=[3, 1, 0, 2]),
        StepPlan(3, "", decodes=[1], swap_out=[SwapPlan(3, 3)]),
        StepPlan(4, "", decodes=[0, 5, 2], swap_in=[SwapPlan(3, 5)], pages=pages(5)),
    ]
    on_cpu, on_gpu = both(folder, tmp_path, plans)
    assert len(on_cpu) == len(plans)
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        assert ours.token_ids == expected.token_ids
        assert ours.failures == {}
        assert ours.logprobs.keys() == expected.logprobs.keys()
        for row, logprobs in ours.logprobs.items():
            assert logprobs.top_ids == expected.logprobs[row].top_ids
            assert logprobs.top_logprobs == pytest.approx(expected.logprobs[row].top_logprobs, abs=1e-4)
    assert [len(prompt_logprobs_of(result, 1)) for result in on_cpu[:3]] == [64, 5, 0]
    compare_prompt_logprobs(on_gpu, on_cpu)


def prompt_logprobs_of(result: StepResult, request: int) -> list[TokenLogprobs]:
    return result.prompt_logprobs.get(request, [])


def compare_prompt_logprobs(on_gpu: list[StepResult], on_cpu: list[StepResult]) -> None:
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        assert ours.prompt_logprobs.keys() == expected.prompt_logprobs.keys()
        for request in expected.prompt_logprobs:
            pairs = zip(prompt_logprobs_of(ours, request), prompt_logprobs_of(expected, request), strict=True)
            for found, other in pairs:
                assert (found.rank, found.top_ids) == (other.rank, other.top_ids)
                assert found.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_state_saved_inside_a_chunk_is_gone_on_from(folder: Path, tmp_path: Path) -> None:
    """Two prompts that share 64 tokens; the second begins where the first was saved, in another slot."""
    shared, greedy, asks = (
        prompt(80),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, prompt_logprobs=2),
    )
    second = shared[:64] + prompt(7)
    plans = [
        StepPlan(
            0, "", admitted=[admitted(0, 0, shared, asks), admitted(1, 1, prompt(9), greedy)], pages=pages(0, 1),
            chunks=[ChunkPlan(0, 80, True), ChunkPlan(1, 9, True)], saved=[SnapshotPlan(7, 64, 0)],
        ),
        StepPlan(
            1, "", decodes=[1], admitted=[admitted(2, 2, second, greedy, start=64)], pages=pages(2),
            restored=[SnapshotPlan(7, 64, 2)], chunks=[ChunkPlan(2, 7, True)],
        ),
        StepPlan(2, "", decodes=[0, 1, 2], dropped=[7]),
    ]  # fmt: skip
    on_cpu, on_gpu = both(folder, tmp_path, plans)
    assert [result.token_ids for result in on_gpu] == [result.token_ids for result in on_cpu]
    assert len(prompt_logprobs_of(on_cpu[0], 0)) == 79  # its rows lie in two rounds, with the other prompt's between
    compare_prompt_logprobs(on_gpu, on_cpu)


# Experts leave the parts of padded rows unwritten, and numpy warns of what lies there, in the interpreter.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("greedy", [False, True])
def test_a_padded_decode_step_is_the_step_without_padding(folder: Path, tmp_path: Path, greedy: bool) -> None:
    """What a graph captures: 4 rows, of which 2 are live, against a step of 2; and the tables afterwards."""
    params = SamplingParams(temperature=0.0) if greedy else SamplingParams(temperature=0.9, top_k=9, seed=3)
    new = [admitted(n, slot, prompt(5 + n), params) for n, slot in enumerate((1, 4))]
    chunks = [ChunkPlan(1, 5, True), ChunkPlan(4, 6, True)]
    first = StepPlan(0, "", admitted=new, pages=pages(1, 4), chunks=chunks)
    (_, expected), _ = run(folder, tmp_path / "plain", "cuda", [first, StepPlan(1, "", decodes=[4, 1])])
    _, worker = run(folder, tmp_path / "padded", "cuda", [first])
    steps, table = worker.steps, worker.table
    assert isinstance(steps, GpuSteps)
    table.flush()  # as before every step
    step = DecodeStep(4, table, None)
    step.numbers.copy_(torch.tensor([2, 0, 0, 0, 4, 1, table.scratch_slot, table.scratch_slot], dtype=torch.int32))
    with torch.inference_mode():
        output = step.run(steps._compute, greedy)
    assert output.tokens is not None
    assert output.tokens[:2].tolist() == expected.token_ids
    assert table.last_tokens[[4, 1]].tolist() == expected.token_ids
    assert table.lengths[[1, 4, table.scratch_slot]].tolist() == [6, 7, 0]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_a_row_of_bad_numbers_fails_alone(folder: Path, tmp_path: Path) -> None:
    greedy = SamplingParams(temperature=0.0)
    run_dir = tmp_path / "gpu"
    run_dir.mkdir()
    worker = Worker(launch_spec(folder, run_dir, device="cuda", devices=(0,)), 0)
    worker.load()
    worker.model.embed_tokens.weight.data[11] = torch.nan
    new = [admitted(0, 0, [5, 6, 7], greedy), admitted(1, 1, [5, 11, 7], greedy)]
    chunks = [ChunkPlan(0, 3, True), ChunkPlan(1, 3, True)]
    result = worker.execute(StepPlan(0, "", admitted=new, pages=pages(0, 1), chunks=chunks), "")
    assert result is not None
    assert {row: failure.code for row, failure in result.failures.items()} == {1: "invalid_numbers"}
    assert "output token 0 hold NaN or infinity" in result.failures[1].reason
    assert result.token_ids[0] >= 0
    worker.close()


def test_a_step_writes_nothing_into_strangers_slots_and_pages(folder: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "gpu"
    run_dir.mkdir()
    worker = Worker(launch_spec(folder, run_dir, device="cuda", devices=(0,)), 0)
    worker.load()
    for cache in worker.cache.layers.values():
        for tensor in cache.tensors:
            tensor.fill_(torch.nan)
    greedy = SamplingParams(temperature=0.0)
    plans = [
        StepPlan(0, "", admitted=[admitted(0, 3, prompt(20), greedy)], pages=pages(3), chunks=[ChunkPlan(3, 20, True)]),
        StepPlan(1, "", decodes=[3]),
    ]
    for plan in plans:
        result = worker.execute(plan, "")
        assert result is not None
        assert result.failures == {}
    own_pages = pages(3)[0].pages[:2]
    for cache in worker.cache.layers.values():
        for name, tensor in vars(cache).items():
            touched = (~tensor.isnan()).flatten(1).any(1).nonzero().flatten().tolist()
            assert touched == (own_pages if name in ("keys", "values") else [3]), name
    worker.close()


class GatheredFrom:
    """Collectives of ranks whose columns are known."""

    def __init__(self, *others: torch.Tensor) -> None:
        self.others, self.size = others, 1 + len(others)

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        assert widths == (tensor.shape[1],) * self.size
        return torch.cat((tensor, *self.others), dim=1)


def test_the_likeliest_of_all_ranks() -> None:
    """The lowest id among equals; a rank with NaN has a value of infinity."""
    inf = float("inf")
    values, tokens = torch.tensor([1.0, 5.0, 2.0, 0.5]), torch.tensor([3, 4, 5, 6], dtype=torch.int32)
    second = torch.tensor([[2.0, 5.0, 1.0, inf], [248_319, 130_000, 130_001, 130_002]])
    third = torch.tensor([[2.0, 5.0, 3.0, 0.0], [248_320, 248_321, 248_322, 248_323]])
    found, largest = likeliest_of_ranks(tokens, values, GatheredFrom(second, third))  # type: ignore[arg-type]
    assert found.tolist() == [248_319, 4, 248_322, 130_002]
    assert largest.tolist() == [2.0, 5.0, 3.0, inf]


# The smallest widths with which a GPU is exact.
EXACT_LAYERS = TWO_LAYERS | {
    "num_attention_heads": 4, "linear_num_value_heads": 4,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip


def test_each_token_comes_with_the_digest_of_its_logits_whatever_else_is_in_the_step(tmp_path: Path) -> None:
    """In the exact mode: alone, and beside another prompt and a row that decodes."""
    config = random_text_config(**EXACT_LAYERS, vocab_size=VOCABULARY)
    folder = write_checkpoint(make_reference(config, seed=3), tmp_path / "model", dtype="float32")
    check_exact_gpu_shapes(read_config(folder), tp_size=1)
    first, other = (admitted(slot, slot, prompt(5 + slot)) for slot in (0, 1))
    last = {"sample": True}
    alone = [
        StepPlan(0, "", admitted=[first], pages=pages(0), chunks=[ChunkPlan(0, 5, **last)]),
        StepPlan(1, "", decodes=[0]),
    ]
    beside = [
        StepPlan(0, "", admitted=[first], pages=pages(0), chunks=[ChunkPlan(0, 5, **last)]),
        StepPlan(1, "", admitted=[other], pages=pages(1), decodes=[0], chunks=[ChunkPlan(1, 6, **last)]),
    ]
    found = []
    for number, plans in enumerate((alone, beside)):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        worker = Worker(launch_spec(folder, run_dir, device="cuda", devices=(0,), exact=True, digests=True), 0)
        worker.load()
        results = [result for plan in plans if (result := worker.execute(plan, "")) is not None]
        worker.close()
        assert [len(result.digests) for result in results] == [len(result.token_ids) for result in results]
        found.append([result.digests[0] for result in results])
    assert found[0] == found[1]
    assert len(set(found[0])) == 2
