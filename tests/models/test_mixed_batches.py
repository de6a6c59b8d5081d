"""Sequences that share a step, a page pool and slots do not see each other."""

from pathlib import Path

import pytest
import torch

from splitrank.models.cache import KVPages, RecurrentSlots
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import StageRunner, random_tokens, relative_error

# Another batch composition is another GEMM shape: float rounding, as between a prefill and steps.
BOUND = 5e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed")
    return write_checkpoint(make_reference(random_text_config(), seed=5), path, dtype="float32")


@pytest.fixture
def runner(folder: Path, tmp_path: Path) -> StageRunner:
    return StageRunner(folder, tmp_path)


def tokens(length: int, seed: int) -> list[int]:
    return random_tokens(length, 384, seed)


def alone(folder: Path, run_dir: Path, prompt: list[int], outputs: list[int]) -> torch.Tensor:
    """Logits of a prompt (64 a chunk) and then of given tokens, one a step, on a worker of its own."""
    runner = StageRunner(folder, run_dir)
    sequence = runner.start(len(prompt) + len(outputs))
    return torch.cat([runner.prefill(sequence, prompt), *(runner.decode(sequence, [token]) for token in outputs)])


def test_decodes_and_prefills_in_one_step_give_what_each_gives_alone(
    folder: Path, runner: StageRunner, tmp_path: Path
) -> None:
    prompts = [tokens(length, seed=length) for length in (30, 1, 64, 150)]
    outputs = [tokens(3, seed=100 + length) for length in (30, 1)]
    a, b, c, d = (runner.start(200, slot) for slot in (6, 2, 0, 5))
    found: list[list[torch.Tensor]] = [[], [], [], []]

    def step(*work: tuple[int, list[int]]) -> None:
        sequences = (a, b, c, d)
        for (number, _), logits in zip(work, runner.step(*(sequences[n].take(t) for n, t in work)), strict=True):
            found[number].append(logits)

    step((0, prompts[0]), (1, prompts[1]))
    step((3, prompts[3][:64]), (0, outputs[0][:1]), (1, outputs[1][:1]))  # the plan lists a prefill first
    step((0, outputs[0][1:2]), (2, prompts[2]), (3, prompts[3][64:128]), (1, outputs[1][1:2]))
    step((1, outputs[1][2:]), (3, prompts[3][128:]), (0, outputs[0][2:]))
    for number, prompt in enumerate(prompts):
        expected = alone(folder, tmp_path, prompt, outputs[number] if number < 2 else [])
        assert relative_error(torch.cat(found[number]), expected) <= BOUND


def test_a_used_slot_and_used_pages_change_no_bit(folder: Path, runner: StageRunner, tmp_path: Path) -> None:
    first = runner.start(150)
    runner.prefill(first, tokens(150, seed=1))
    runner.end(first)
    second = runner.start(150)
    assert second.pages == first.pages
    assert second.slot == first.slot
    prompt, outputs = tokens(70, seed=2), tokens(4, seed=3)
    found = torch.cat([runner.prefill(second, prompt), runner.decode(second, outputs)])
    assert torch.equal(found, alone(folder, tmp_path, prompt, outputs))


def test_a_step_writes_only_where_its_plan_points(runner: StageRunner) -> None:
    """Every other page and slot keeps its bits, also page 0, with which page tables are padded."""
    generator = torch.Generator().manual_seed(0)
    for state in runner.worker.cache.layers.values():
        for tensor in state.tensors:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    short, long = runner.start(20, slot=3), runner.start(100, slot=1)
    before = {layer: [t.clone() for t in s.tensors] for layer, s in runner.worker.cache.layers.items()}
    runner.prefill(short, tokens(17, seed=1))
    runner.prefill(long, tokens(64, seed=2))
    runner.step(short.take([5]), long.take([7]))
    for layer, state in runner.worker.cache.layers.items():
        used = short.pages + long.pages[:5] if isinstance(state, KVPages) else [1, 3]
        assert isinstance(state, KVPages | RecurrentSlots)
        for old, new in zip(before[layer], state.tensors, strict=True):
            changed = (old != new).flatten(1).any(-1).nonzero().flatten().tolist()
            assert changed == sorted(used), f"layer {layer}"


def test_the_order_of_pages_changes_no_bit(runner: StageRunner) -> None:
    prompt = tokens(100, seed=4)
    straight, scattered = runner.start(128, slot=0), runner.start(128, slot=1)
    scattered.pages[:] = [scattered.pages[i] for i in (3, 0, 6, 1, 7, 2, 5, 4)]
    outputs = tokens(5, seed=5)
    expected = torch.cat([runner.prefill(straight, prompt), runner.decode(straight, outputs)])
    assert torch.equal(torch.cat([runner.prefill(scattered, prompt), runner.decode(scattered, outputs)]), expected)
