"""The device link between processes, each on a GPU of its own, and two on one GPU; and stages that it links.

Two that share a GPU run in turns: a kernel that waits takes the other's time, so there it is slow, and right.
"""

from pathlib import Path

import pytest
import torch

from splitrank import LLM
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.support.device_link_runs import check_dead, check_deaf, check_mismatches, check_silent, run
from tests.support.layout_runs import DTYPES, Layouts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

TWO_GPUS = pytest.param(("cuda:0", "cuda:1"), marks=pytest.mark.gpu(count=2), id="two GPUs")
ONE_GPU = pytest.param(("cuda:0", "cuda:0"), id="one GPU")
both_kinds = pytest.mark.parametrize("devices", [TWO_GPUS, ONE_GPU])
SAMPLED = SamplingParams(temperature=0.8, seed=7, max_tokens=100)


@both_kinds
def test_every_bit_of_thousands_of_messages_both_ways(tmp_path: Path, devices: tuple[str, ...]) -> None:
    tensors = 4500 if len(set(devices)) == 2 else 900
    assert run("both_ways", tmp_path, 2, devices) == [[tensors, 0], [tensors, 0]]


@both_kinds
def test_a_stage_may_be_as_many_messages_ahead_as_there_are_places(tmp_path: Path, devices: tuple[str, ...]) -> None:
    assert run("ahead", tmp_path, 2, devices)[1] == [1, 1, 1]


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(("cuda:0", "cuda:1", "cuda:0"), marks=pytest.mark.gpu(count=2), id="two GPUs"),
        pytest.param(("cuda:0",) * 3, id="one GPU"),
    ],
)
def test_states_go_along_the_ring_and_tokens_back_to_the_first(tmp_path: Path, devices: tuple[str, ...]) -> None:
    assert run("ring", tmp_path, 3, devices)[0] == [2.0] * 50


@both_kinds
def test_a_message_that_was_not_agreed_on_is_an_error_that_names_both_sides(
    tmp_path: Path, devices: tuple[str, ...]
) -> None:
    check_mismatches(run("mismatch", tmp_path, 2, devices)[1])


@both_kinds
def test_a_silent_stage_is_an_error_in_time_on_both_sides(tmp_path: Path, devices: tuple[str, ...]) -> None:
    check_silent(run("silent_stage", tmp_path, 2, devices))


@both_kinds
def test_a_stage_that_reads_nothing_is_an_error_in_time(tmp_path: Path, devices: tuple[str, ...]) -> None:
    check_deaf(run("deaf_stage", tmp_path, 2, devices)[0])


@both_kinds
def test_a_dead_stage_is_an_error_in_time(tmp_path: Path, devices: tuple[str, ...]) -> None:
    check_dead(run("dead_stage", tmp_path, 2, devices)[1])


def layouts(folder: Path, devices: tuple[int, ...], stage_link: str = "device") -> Layouts:
    folder.mkdir()
    return Layouts(folder, SAMPLED, in_flight=3, device="cuda", devices=devices, stage_link=stage_link)


@pytest.mark.parametrize(
    "devices",
    [pytest.param((0, 1, 0), marks=pytest.mark.gpu(count=2), id="two GPUs"), pytest.param((0, 0, 0), id="one GPU")],
)
@pytest.mark.parametrize("pp", [2, 3])
def test_linked_stages_change_no_bit(tmp_path: Path, devices: tuple[int, ...], pp: int) -> None:
    one, several = layouts(tmp_path / "one", (0,)).outcome(1, 1), layouts(tmp_path / "pp", devices).outcome(pp, 1)
    for dtype in DTYPES:
        assert torch.isfinite(one[dtype]["logits"]).all()
        assert torch.equal(several[dtype]["logits"], one[dtype]["logits"])
        assert torch.equal(several[dtype]["tokens"], one[dtype]["tokens"])


@pytest.mark.parametrize(
    "devices",
    [pytest.param((0, 1, 0, 1), marks=pytest.mark.gpu(count=2), id="two GPUs"), pytest.param((0,) * 4, id="one GPU")],
)
def test_linked_stages_of_two_tensor_ranks_change_no_bit(tmp_path: Path, devices: tuple[int, ...]) -> None:
    options = {"in_flight": 3, "device": "cuda", "devices": devices, "stage_link": "device", "all_reduce": "torch"}
    outcomes = Layouts(tmp_path, SAMPLED, **options)
    expected, found = outcomes.outcome(1, 2), outcomes.outcome(2, 2)
    for dtype in DTYPES:
        assert torch.isfinite(expected[dtype]["logits"]).all()
        assert torch.equal(found[dtype]["logits"], expected[dtype]["logits"])
        assert torch.equal(found[dtype]["tokens"], expected[dtype]["tokens"])


PROMPTS = [f"Tom has {n} apples and buys {n + 3} more. How many has he?" for n in range(2, 50)]


def answers(pp: int, num_alone: int = 8, most: int = 64, **options: object) -> tuple[list[list[int]], int]:
    """Token ids of prompts, one after the other, and how many of 48 at once were answered."""
    params = SamplingParams(temperature=0.0, max_tokens=most)
    with LLM(pp=pp, device="cuda", max_model_len=1024, **options) as llm:
        alone = [llm.generate(prompt, params)[0].token_ids for prompt in PROMPTS[:num_alone]]
        mixed = [
            SamplingParams(temperature=0.7 * (n % 3), max_tokens=1 + n % most, presence_penalty=0.5 * (n % 2), seed=n)
            for n in range(len(PROMPTS))
        ]
        return alone, len([one for one in llm.generate(PROMPTS, mixed) if one.token_ids])


@pytest.mark.gpu(count=2)
def test_an_engine_of_two_linked_stages_gives_the_tokens_of_one() -> None:
    expected, all_answered = answers(1)
    assert answers(2, devices=(0, 1), stage_link="device") == (expected, all_answered)
    assert all_answered == len(PROMPTS)


@pytest.mark.gpu(count=2)
def test_two_linked_stages_of_two_tensor_ranks_share_two_gpus() -> None:
    """Decode graphs with sums over tensor ranks, and the link: four ranks, of which each GPU has one of each stage.

    What waits on a GPU holds it against the other rank there for a slice of time, so this is slow, and short.
    """
    expected, all_answered = answers(1, 2, 12, tp=2, devices=(0, 1))
    shared = {"tp": 2, "devices": (0, 1, 1, 0), "share_devices": True, "stage_link": "device"}
    assert answers(2, 2, 12, **shared) == (expected, all_answered)
    assert all_answered == len(PROMPTS)
