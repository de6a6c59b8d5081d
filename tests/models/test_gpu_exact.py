"""The exact mode of a GPU: a request's logits are the same bits in any batch, chunking, and from a snapshot.

On the GPU where there is one, else interpreted. At a large model's widths and as compiled: ``tests/gpu/test_exact.py``.
One tile a launch, whatever the rows: ``tests/serving/rank/test_planned_launches.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.interpreter import ordered_dot
from tests.support.layout_in_process import LayoutInProcess
from tests.support.stage_runner import Share, StageRunner, random_tokens

VOCABULARY, PROMPT, OUTPUTS = 389, 129, 3
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 72,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 6,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 128,
}


@pytest.fixture(scope="module", autouse=True)
def _ordered_dot() -> Iterator[None]:
    with ordered_dot():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = make_reference(random_text_config(**SMALL), seed=3)
    return write_checkpoint(reference, tmp_path_factory.mktemp("exact"), dtype="float32")


@pytest.fixture(scope="module")
def runner(folder: Path) -> StageRunner:
    return StageRunner(folder, folder, device="cuda", devices=(0,), exact=True, max_prefill_tokens=512)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return random_tokens(PROMPT, VOCABULARY, seed=1)


@pytest.fixture(scope="module")
def outputs() -> list[int]:
    return random_tokens(OUTPUTS, VOCABULARY, seed=2)


@pytest.fixture(scope="module")
def expected(runner: StageRunner, prompt: list[int], outputs: list[int]) -> torch.Tensor:
    """Logits of every token: the prompt in one step, then each generated token, alone."""
    return in_steps(runner, [PROMPT], prompt, outputs)


def in_steps(runner: StageRunner, chunks: list[int], prompt: list[int], outputs: list[int]) -> torch.Tensor:
    sequence, parts = runner.start(PROMPT + OUTPUTS), []
    for length in chunks:
        parts += runner.step(sequence.take(prompt[sequence.length : sequence.length + length]))
    for token in outputs:
        parts += runner.step(sequence.generated(token))
    runner.end(sequence)
    return torch.cat(parts)


@pytest.mark.parametrize(
    "chunks",
    [[64, 64, 1], pytest.param([64, 65], marks=pytest.mark.full), pytest.param([128, 1], marks=pytest.mark.full)],
    ids=str,
)
def test_no_chunking_changes_a_bit(
    runner: StageRunner, prompt: list[int], outputs: list[int], expected: torch.Tensor, chunks: list[int]
) -> None:
    """A lone token at a prompt's end, too, which is no decode row here."""
    assert torch.equal(in_steps(runner, chunks, prompt, outputs), expected)


def test_no_batch_changes_a_bit(
    runner: StageRunner, prompt: list[int], outputs: list[int], expected: torch.Tensor
) -> None:
    """Beside rows that decode, beside prompts, and both: before it and behind it."""
    others = [runner.start(PROMPT, slot) for slot in (0, 1, 3, 4)]
    sequence = runner.start(PROMPT + OUTPUTS, slot=2)
    first = [other.take(random_tokens(5 + slot, VOCABULARY, seed=10 + slot)) for slot, other in enumerate(others)]
    steps: list[list[Share]] = [
        first[:2],
        [others[0].generated(5), sequence.take(prompt[:64]), others[1].generated(6), first[2]],
        [sequence.take(prompt[64:]), others[2].generated(7), first[3]],
        [others[0].generated(1), sequence.generated(outputs[0])],
        [*(other.generated(9) for other in others), sequence.generated(outputs[1])],
        [sequence.generated(outputs[2]), others[3].generated(8)],
    ]
    found = []
    for shares in steps:
        logits = runner.step(*shares)
        found += [part for share, part in zip(shares, logits, strict=True) if share.sequence is sequence]
    for one in (*others, sequence):
        runner.end(one)
    assert torch.equal(torch.cat(found), expected)


@pytest.mark.full
def test_a_snapshot_changes_no_bit(
    runner: StageRunner, prompt: list[int], outputs: list[int], expected: torch.Tensor
) -> None:
    """Saved behind a block, restored after another prompt has gone on from there."""
    sequence, worker = runner.start(PROMPT + OUTPUTS), runner.worker
    runner.step(sequence.take(prompt[:64]))
    pages = torch.tensor(sequence.pages, device=worker.table.device)
    saved, row = worker.cache.save(pages, 0), worker.table.rows[0]
    runner.step(sequence.take(random_tokens(70, VOCABULARY, seed=4)))
    worker.cache.restore(saved, pages, 0)
    worker.table.rows[0], sequence.length = row, 64
    worker.table.set_length(0, 64)
    found = runner.step(sequence.take(prompt[64:])) + runner.step(sequence.generated(outputs[0]))
    runner.end(sequence)
    assert torch.equal(torch.cat(found), expected[64 : PROMPT + 1])


@pytest.mark.parametrize(
    ("pp", "tp"), [pytest.param(2, 1, marks=pytest.mark.full), (1, 2), pytest.param(2, 4, marks=pytest.mark.full)]
)
def test_no_layout_changes_a_bit(
    runner: StageRunner,
    prompt: list[int],
    outputs: list[int],
    expected: torch.Tensor,
    pp: int,
    tp: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner.worker, "model", LayoutInProcess(runner.worker, pp, tp))
    monkeypatch.setattr(runner.worker.steps, "_graphs", None)
    assert torch.equal(in_steps(runner, [PROMPT], prompt, outputs), expected)
