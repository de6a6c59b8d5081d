"""Whatever goes wrong is an exception with the numbers on every surviving rank within the limit; nothing is left."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.comm.quick_reduce import QuickAllReduce
from tests.support import shared_memory
from tests.support.forked import ForkedProcess
from tests.support.limits import PROGRAM_S, SLACK_S, scaled
from tests.support.quick_rank import TIMEOUT_S


@contextmanager
def ranks(scenario: str, folder: Path, world_size: int = 2) -> Iterator[list[ForkedProcess]]:
    processes = [
        ForkedProcess("tests.support.quick_rank", scenario, folder, rank, world_size) for rank in range(world_size)
    ]
    before = shared_memory.names()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    shared_memory.assert_nothing_new(before)


def said(process: ForkedProcess) -> list[Any]:
    """The JSON lines of a rank that has ended by itself."""
    output, errors = process.communicate(timeout=scaled(PROGRAM_S))
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def run(scenario: str, folder: Path, world_size: int = 2) -> list[list[Any]]:
    with ranks(scenario, folder, world_size) as processes:
        return [said(process) for process in processes]


def assert_error(seen: list[Any], *words: str) -> None:
    seconds, message = seen
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert seconds < TIMEOUT_S + scaled(SLACK_S)


@pytest.fixture
def alone() -> QuickAllReduce:
    return QuickAllReduce(None, 0, 1, TIMEOUT_S)


GOOD = torch.ones(64)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(4, dtype=torch.int32), "takes float32, bfloat16 and float16, not torch.int32"),
        (torch.ones(4, dtype=torch.float64), "takes float32, bfloat16 and float16, not torch.float64"),
        (torch.ones(4, device="meta"), "was made for cpu, the tensor is on meta"),
        (torch.ones(6, 4).t(), r"contiguous tensors, not shape \[4, 6\] with strides \[1, 4\]"),
        (torch.ones(8)[1:], "aligned to 16 bytes, this one starts 4 bytes behind"),
        (torch.ones(8, dtype=torch.bfloat16)[5:], "aligned to 16 bytes, this one starts 10 bytes behind"),
    ],
    ids=["int32", "float64", "device", "transposed", "unaligned", "unaligned bfloat16"],
)
def test_a_tensor_that_cannot_be_summed(alone: QuickAllReduce, tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alone.all_reduce(tensor)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.ones(63), r"the output is torch.float32 \[63\], the input torch.float32 \[64\]"),
        (torch.ones(64, dtype=torch.bfloat16), r"the output is torch.bfloat16 \[64\]"),
        (torch.ones(128)[::2], r"contiguous tensors, not shape \[64\] with strides \[2\]"),
    ],
    ids=["shorter", "dtype", "gaps"],
)
def test_an_output_that_is_not_like_the_input(alone: QuickAllReduce, output: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alone.all_reduce(GOOD, output)


def test_an_output_that_overlaps_the_input(alone: QuickAllReduce) -> None:
    both = torch.ones(100)
    with pytest.raises(ValueError, match="input and output overlap, 16 bytes apart, 256 long"):
        alone.all_reduce(both[:64], both[4:68])


@pytest.mark.parametrize(("algorithm", "codec"), [("three-shot", "none"), ("two-shot", "int5"), ("one-shot", "")])
def test_an_unknown_name(alone: QuickAllReduce, algorithm: str, codec: str) -> None:
    with pytest.raises(ValueError, match=f"not algorithm '{algorithm}' and codec '{codec}'"):
        alone.all_reduce(GOOD, algorithm=algorithm, codec=codec)


@pytest.mark.parametrize("world_size", [0, 3, 5, 16])
def test_a_world_size_that_has_no_kernel(world_size: int) -> None:
    with pytest.raises(ValueError, match=f"sums over 1, 2, 4 or 8 ranks, not over {world_size}"):
        QuickAllReduce(None, 0, world_size, TIMEOUT_S)


@pytest.mark.parametrize("difference", ["shape", "dtype", "codec", "algorithm"])
def test_ranks_that_make_different_calls(tmp_path: Path, difference: str) -> None:
    all_seen = run(difference, tmp_path)
    for rank, (good, bad, poisoned, closed, after) in enumerate(all_seen):
        own = f"tensor rank {rank} of 2"
        assert_error(bad, own, "slot 0")
        assert_error(poisoned, own, "an earlier call failed: ")
        assert_error(after, own, "it is closed")
        assert good[1] == closed[1] == ""
    # Who sees it first says what differs; the other sees it too, or hears that its peer gave up.
    words = ("makes another call", "gave up")
    assert all(any(word in seen[1][1] for word in words) for seen in all_seen)
    assert any(words[0] in seen[1][1] for seen in all_seen)


def test_one_of_four_that_makes_another_call(tmp_path: Path) -> None:
    for rank, seen in enumerate(run("shape", tmp_path, 4)):
        assert_error(seen[1], f"tensor rank {rank} of 4", "tensor rank ")


def test_a_call_that_one_rank_does_not_make(tmp_path: Path) -> None:
    absent, present = run("missing_call", tmp_path)
    assert_error(present[0], "nothing came from tensor rank 0 within 3 s", "4,096 float32 elements")
    assert present[0][0] >= TIMEOUT_S
    assert_error(present[1], "an earlier call failed")
    assert_error(absent[0], "tensor rank 1 gave up", "8,192 float32 elements")


def test_a_rank_that_leaves_while_others_call(tmp_path: Path) -> None:
    left, stayed = run("leaves_early", tmp_path)
    assert left[0][1] == ""
    assert left[0][0] < TIMEOUT_S + scaled(SLACK_S)
    assert_error(stayed[0], "tensor rank 0")


def test_two_calls_at_once(tmp_path: Path) -> None:
    twice, once = run("overlap", tmp_path)
    assert sum("two calls at once on slot 0: call 2 began, call 1 had not ended" in error for _, error in twice) == 2
    assert_error(once[0], "tensor rank 0 gave up")


def test_no_room_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    for rank, (seen, regions) in enumerate(run("no_room", tmp_path, 4)):
        assert_error(seen, f"tensor rank {rank} of 4", "start failed on tensor rank 1: ", "File too large")
        assert regions == 0, "exchange memory is left"


def interrupt(victim: ForkedProcess, number: signal.Signals, after_s: float) -> None:
    """Sends the signal when the rank has made its first call."""
    assert json.loads(victim.stdout.readline())[1] == ""
    time.sleep(after_s)
    victim.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_peer_lost_between_two_calls(tmp_path: Path, number: signal.Signals, world_size: int) -> None:
    with ranks("idle_peer", tmp_path, world_size) as processes:
        interrupt(processes[1], number, 0.1)
        for rank in set(range(world_size)) - {1}:
            first, second, closed = said(processes[rank])
            assert first[1] == ""
            assert_error(second, f"tensor rank {rank} of {world_size}", "in phase 1 of slot 0", "tensor rank")
            assert_error(closed)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("world_size", "after_s"), [(2, 0.3), (4, 0.5)])
def test_a_peer_lost_in_the_middle_of_a_call(
    tmp_path: Path, number: signal.Signals, world_size: int, after_s: float
) -> None:
    with ranks("busy_peer", tmp_path, world_size) as processes:
        interrupt(processes[1], number, after_s)
        for rank in set(range(world_size)) - {1}:
            first, lost, closed = said(processes[rank])
            assert first[1] == ""
            assert "nothing came from tensor rank" in lost[1] or "gave up" in lost[1]
            assert lost[0] < after_s + TIMEOUT_S + 2 * scaled(SLACK_S)
            assert_error(closed)


@pytest.mark.parametrize("phase", [1, 2])
def test_a_peer_that_dies_in_a_phase(tmp_path: Path, phase: int) -> None:
    with ranks(f"dies_in_phase_{phase}", tmp_path) as processes:
        first, second = said(processes[0])
        processes[1].communicate(timeout=scaled(PROGRAM_S))
        assert processes[1].returncode == -signal.SIGBUS
    assert first[1] == ""
    assert_error(second, f"in phase {phase} of slot 0 nothing came from tensor rank 1 within 3 s")
