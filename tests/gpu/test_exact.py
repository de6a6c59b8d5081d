"""The exact mode as compiled, at the widths of Qwen3.5-35B-A3B, four layers of dummy weights, decode steps as graphs.

A request's logits are the same bits among 1 to 256 rows, in any chunks, beside prompts, from a snapshot, and over
stages.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs 1 GPU, this machine has 0", allow_module_level=True)

from scripts.bench_gpu import config_35b
from tests.support.layout_in_process import LayoutInProcess
from tests.support.stage_runner import Sequence, StageRunner, random_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

VOCABULARY, ROWS, PROMPT = 8192, 256, 3000
OUTPUTS = random_tokens(5, VOCABULARY, seed=2)
SPEC: dict[str, Any] = {
    "device": "cuda", "devices": (0,), "dtype": "bfloat16", "load_format": "dummy", "exact": True, "page_size": 64,
    "num_pages": 700, "max_model_len": 8192, "max_running_requests": ROWS, "chunked_prefill_size": 8192,
    "max_prefill_tokens": 8192, "load_timeout_s": 300.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exact")
    (path / "config.json").write_text(json.dumps(config_35b(4) | {"vocab_size": VOCABULARY}))
    return path


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[StageRunner]:
    runner = StageRunner(folder, folder, **SPEC)
    yield runner
    runner.worker.close()


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return random_tokens(PROMPT, VOCABULARY, seed=1)


@pytest.fixture(scope="module")
def expected(runner: StageRunner, prompt: list[int]) -> torch.Tensor:
    """Logits of every token: the prompt in one step, then each generated token, alone."""
    return in_chunks(runner, prompt, [PROMPT])


def in_chunks(runner: StageRunner, prompt: list[int], chunks: list[int]) -> torch.Tensor:
    sequence, parts = runner.start(PROMPT + 64), []
    for length in chunks:
        parts += runner.step(sequence.take(prompt[sequence.length : sequence.length + length]))
    for token in OUTPUTS:
        parts += runner.step(sequence.generated(token))
    runner.end(sequence)
    return torch.cat(parts)


def check_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    differ = (found != expected).any(1)
    rows = differ.nonzero()[:, 0].tolist()
    assert not rows, f"{len(rows)} of {len(found)} rows differ, the first at {rows[:8]}"
    assert found.isfinite().all()


@pytest.mark.parametrize("size", [1024, 64, 960])
def test_no_chunking_changes_a_bit(runner: StageRunner, prompt: list[int], expected: torch.Tensor, size: int) -> None:
    chunks = [min(size, PROMPT - start) for start in range(0, PROMPT, size)]
    check_bits(in_chunks(runner, prompt, chunks), expected)


def others_of(runner: StageRunner, count: int, slot: int) -> list[Sequence]:
    """Prompts of 1 to 90 tokens in every slot but ``slot``."""
    others = [runner.start(128, number) for number in range(count) if number != slot]
    shares = [other.take(random_tokens(1 + other.slot * 7 % 90, VOCABULARY, seed=other.slot)) for other in others]
    for begin in range(0, len(shares), 100):
        runner.step(*shares[begin : begin + 100])
    return others


@pytest.mark.parametrize("rows", [2, 7, 8, 33, 64, 129, 256])
def test_no_batch_changes_a_bit(runner: StageRunner, prompt: list[int], expected: torch.Tensor, rows: int) -> None:
    """Among ``rows`` sequences: its prompt in two chunks beside rows that decode, then decoding with all of them."""
    slot = rows // 2
    others = others_of(runner, rows, slot)
    sequence, found = runner.start(PROMPT + 64, slot), []
    for chunk in (prompt[:1024], prompt[1024:]):
        shares = [*(other.generated(3 + other.slot) for other in others), sequence.take(chunk)]
        found += runner.step(*shares)[-1:]
    for number, token in enumerate(OUTPUTS):
        shares = [other.generated(5 + number + other.slot) for other in others]
        shares.insert(slot, sequence.generated(token))
        found.append(runner.step(*shares)[slot])
    for one in (*others, sequence):
        runner.end(one)
    check_bits(torch.cat(found), expected)


def test_decoding_beside_prompts_changes_no_bit(runner: StageRunner, prompt: list[int], expected: torch.Tensor) -> None:
    sequence, other = runner.start(PROMPT + 64), runner.start(2048, 1)
    found = runner.step(sequence.take(prompt))
    for length, token in zip((64, 320, 1, 640, 7), OUTPUTS, strict=True):
        if other.length % 64:
            runner.end(other)
            other = runner.start(2048, 1)
        tokens = random_tokens(length, VOCABULARY, seed=length)
        found.append(runner.step(sequence.generated(token), other.take(tokens))[0])
    for one in (sequence, other):
        runner.end(one)
    check_bits(torch.cat(found), expected)


def test_a_snapshot_changes_no_bit(runner: StageRunner, prompt: list[int], expected: torch.Tensor) -> None:
    sequence, worker = runner.start(PROMPT + 64), runner.worker
    runner.step(sequence.take(prompt[:1088]))
    pages = torch.tensor(sequence.pages, device=worker.table.device)
    saved, row = worker.cache.save(pages, 0), worker.table.rows[0]
    runner.step(sequence.take(random_tokens(300, VOCABULARY, seed=4)))
    worker.cache.restore(saved, pages, 0)
    worker.table.rows[0], sequence.length = row, 1088
    worker.table.set_length(0, 1088)
    found = runner.step(sequence.take(prompt[1088:])) + runner.step(sequence.generated(OUTPUTS[0]))
    runner.end(sequence)
    check_bits(torch.cat(found), expected[1088 : PROMPT + 1])


LAYOUTS = [(2, 1), (3, 1), (4, 1), (1, 2), (1, 4), (2, 2)]


@pytest.mark.parametrize(("pp", "tp"), LAYOUTS)
def test_no_layout_changes_a_bit(
    runner: StageRunner, prompt: list[int], expected: torch.Tensor, pp: int, tp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without graphs, and with its prompt cut: launches and graphs give the same bits, too."""
    monkeypatch.setattr(runner.worker, "model", LayoutInProcess(runner.worker, pp, tp))
    monkeypatch.setattr(runner.worker.steps, "_graphs", None)
    check_bits(in_chunks(runner, prompt, [2048, PROMPT - 2048]), expected)
