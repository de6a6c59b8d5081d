"""Stages that the device links, in Triton's interpreter where there is no GPU: steps are launched ahead, tokens go back
to the first stage without the hosts, and every result is that of one stage.
"""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from splitrank.serving.protocol.messages import ChunkPlan, NewPages, StepPlan, SwapPlan
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.support.checkpoints import TWO_LAYERS, make_reference, random_text_config, write_checkpoint
from tests.support.forked import ForkedProcess, finish_all
from tests.support.limits import PROOF_S
from tests.support.stage_rank import Run
from tests.support.stage_runner import admitted, launch_spec, random_tokens

VOCABULARY = 300
PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, top_k=20, seed=5),
    SamplingParams(temperature=0.8, seed=1, presence_penalty=0.5),  # sampled by the host
    SamplingParams(temperature=0.9, seed=2),
)


def pages(*slots: int) -> list[NewPages]:
    return [NewPages(slot, list(range(8 * slot + 1, 8 * slot + 9))) for slot in slots]


def plans() -> list[StepPlan]:
    """Two microbatches in turn, a prompt of two chunks, a row that is swapped out and in, a slot that is handed on."""
    new = [
        admitted(n, n, random_tokens(length, VOCABULARY, seed=n), PARAMS[n]) for n, length in enumerate((9, 5, 3, 70))
    ]
    again = admitted(4, 1, random_tokens(4, VOCABULARY, seed=9), PARAMS[1])
    steps: list[dict[str, list]] = [
        {"admitted": new[:2], "pages": pages(0, 1), "chunks": [ChunkPlan(0, 9, True), ChunkPlan(1, 5, True)]},
        {"admitted": new[2:], "pages": pages(2, 3), "chunks": [ChunkPlan(2, 3, True), ChunkPlan(3, 64, False)]},
        {"decodes": [0, 1]},
        {"decodes": [2], "chunks": [ChunkPlan(3, 6, True)]},
        {"decodes": [1, 0]},
        {"decodes": [3], "swap_out": [SwapPlan(2, 2)]},
        {"decodes": [0, 1]},
        {"decodes": [3, 5], "swap_in": [SwapPlan(2, 5)], "pages": pages(5)},
        {"released": [1], "admitted": [again], "pages": pages(1), "chunks": [ChunkPlan(1, 4, True)], "decodes": [0]},
        {"decodes": [5, 3]},
        {"decodes": [1, 0]},
        {"released": [0, 2, 3, 4]},
    ]
    return [StepPlan(step, "", **parts) for step, parts in enumerate(steps)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = random_text_config(**TWO_LAYERS, vocab_size=VOCABULARY)
    return write_checkpoint(make_reference(config, seed=3), tmp_path_factory.mktemp("stages"), dtype="float32")


def run(folder: Path, run_dir: Path, num_stages: int, stage_link: str = "device") -> dict[str, torch.Tensor]:
    run_dir.mkdir()
    spec = launch_spec(folder, run_dir, device="cuda", devices=(0,) * num_stages, stage_link=stage_link)
    spec = msgspec.structs.replace(spec, pp_size=num_stages, partition=(2 // num_stages,) * num_stages)
    job = run_dir / "job"
    job.write_bytes(msgspec.msgpack.encode([Run(spec, plans(), str(run_dir / "outcome"), in_flight=num_stages + 1)]))
    finish_all([ForkedProcess("tests.support.stage_rank", job, rank) for rank in range(num_stages)])
    return load_file(run_dir / "outcome")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, torch.Tensor]:
    return run(folder, folder / "one", 1)


@pytest.mark.proof  # minutes in the interpreter
@pytest.mark.timeout(PROOF_S)
@pytest.mark.parametrize(
    "stage_link",
    ["device", pytest.param("nccl", marks=pytest.mark.full)],  # which has gloo here; tests/comm/test_group_link.py
)
def test_two_stages_have_the_bits_of_one(
    folder: Path, tmp_path: Path, expected: dict[str, torch.Tensor], stage_link: str
) -> None:
    found = run(folder, tmp_path / "two", 2, stage_link)
    assert len(expected["tokens"]) == sum(len(plan.decodes) + sum(c.sample for c in plan.chunks) for plan in plans())
    assert torch.isfinite(expected["logits"]).all()
    assert torch.equal(found["tokens"], expected["tokens"])
    assert torch.equal(found["logits"], expected["logits"])
