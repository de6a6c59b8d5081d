"""The link by NCCL: two ranks that NCCL takes for two hosts, each with a GPU, and stages that it links."""

from pathlib import Path

import pytest
import torch

from tests.gpu.test_device_link import layouts
from tests.support.device_link_rank import TIMEOUT_S
from tests.support.device_link_runs import run
from tests.support.layout_runs import DTYPES
from tests.support.limits import SLACK_S, scaled

pytestmark = [pytest.mark.gpu(count=2), pytest.mark.timeout(600)]

TWO_GPUS = ("cuda:0", "cuda:1")


def in_time(seen: list[str]) -> None:
    assert max(map(float, seen[::2])) < TIMEOUT_S + scaled(SLACK_S)


def test_every_bit_of_thousands_of_messages_both_ways(tmp_path: Path) -> None:
    assert run("both_ways", tmp_path, 2, TWO_GPUS, "nccl") == [[4500, 0], [4500, 0]]


def test_a_message_that_was_not_agreed_on_is_refused_before_it_is_received(tmp_path: Path) -> None:
    seen = run("mismatch", tmp_path, 2, TWO_GPUS, "nccl")[1]
    assert seen[1] == ""
    assert all("stage 1 expected (5, " in said and "which sent (" in said for said in seen[3::2])
    in_time(seen)


def test_a_silent_stage_is_an_error_in_time_on_both_sides(tmp_path: Path) -> None:
    seen = run("silent_stage", tmp_path, 2, TWO_GPUS, "nccl")
    assert seen[1][1] == "stage 1 waited for stage 0, step 7: nothing came for 3 s"
    assert seen[0][1].endswith("has left")
    in_time(seen[1])


def test_a_dead_stage_is_noticed_at_once(tmp_path: Path) -> None:
    [seconds, said] = run("dead_stage", tmp_path, 2, TWO_GPUS, "nccl")[1]
    assert said.endswith("has left")
    assert float(seconds) < TIMEOUT_S


def test_a_stage_that_dies_between_header_and_payload_holds_up_no_gpu(tmp_path: Path) -> None:
    """The other one's GPU waits already: only an abort of NCCL ends that."""
    [seconds, said] = run("half_a_message", tmp_path, 2, TWO_GPUS, "nccl")[1]
    assert said == "stage 1: stage 0 has left"
    in_time([seconds, said])


def test_linked_stages_change_no_bit(tmp_path: Path) -> None:
    one, two = layouts(tmp_path / "one", (0,)).outcome(1, 1), layouts(tmp_path / "pp", (0, 1), "nccl").outcome(2, 1)
    for dtype in DTYPES:
        assert torch.isfinite(one[dtype]["logits"]).all()
        assert torch.equal(two[dtype]["logits"], one[dtype]["logits"])
        assert torch.equal(two[dtype]["tokens"], one[dtype]["tokens"])
