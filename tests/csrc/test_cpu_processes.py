"""Ranks of the CPU module as processes: sums, killed peers, and what is left behind (nothing)."""

import errno
import os
import time
from pathlib import Path

import pytest

from splitrank._quick_reduce_cpu import Communicator
from tests.csrc.cpu_processes import Processes, RankProcess
from tests.csrc.cpu_world import NUM_SLOTS, SEGMENT_BYTES
from tests.support import shared_memory
from tests.support.limits import SLACK_S, scaled

LIMIT_S = 1.0


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_sum(world_size: int) -> None:
    with Processes(world_size) as processes:
        for size in (1, 1000, 100_000):
            for rank in processes.ranks:
                rank.tell({"size": size, "repeat": 20, "limit_s": 20.0})
            assert [rank.hear() for rank in processes.ranks] == [{"done": 20, "failure": None}] * world_size
        assert [rank.end() for rank in processes.ranks] == [0] * world_size


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_killed_peer_ends_every_call_within_the_limit(world_size: int) -> None:
    """Killed while it sums without end, so in either phase."""
    with Processes(world_size) as processes:
        *survivors, victim = processes.ranks
        for rank in processes.ranks:
            rank.tell({"size": 200_000, "repeat": 10**9, "limit_s": LIMIT_S})
        time.sleep(0.3)
        victim.kill()
        killed = time.monotonic()
        heard = [rank.hear() for rank in survivors]
        assert time.monotonic() - killed < scaled(LIMIT_S + SLACK_S)
        failures = [message["failure"] for message in heard]
        assert {failure["kind"] for failure in failures} <= {"timeout", "aborted"}
        timeouts = [failure for failure in failures if failure["kind"] == "timeout"]
        assert timeouts
        assert all(failure["peer"] == world_size - 1 and failure["phase"] in (1, 2) for failure in timeouts)
        for rank in survivors:  # poisoned: the next one fails at once
            rank.tell({"size": 8, "repeat": 1, "limit_s": 100.0})
        assert [rank.hear() for rank in survivors] == [{"done": 0, "failure": failure} for failure in failures]


def test_a_peer_that_never_calls() -> None:
    with Processes(2) as processes:
        processes.ranks[0].tell({"size": 100, "repeat": 1, "limit_s": 0.2})
        failure = processes.ranks[0].hear()["failure"]
        assert (failure["kind"], failure["phase"], failure["peer"]) == ("timeout", 1, 1)
        processes.ranks[1].tell({"size": 100, "repeat": 1, "limit_s": 100.0})
        failure = processes.ranks[1].hear()["failure"]  # told by the other one: at once
        assert (failure["kind"], failure["peer"]) == ("aborted", 0)


def test_nothing_is_left_after_a_kill() -> None:
    before = shared_memory.names()
    with Processes(2) as processes:
        for rank in processes.ranks:
            rank.tell({"size": 100_000, "repeat": 10**9, "limit_s": LIMIT_S})
        time.sleep(0.2)
        shared_memory.assert_nothing_new(before, {rank.process.pid for rank in processes.ranks})
        for rank in processes.ranks:
            rank.kill()
    shared_memory.assert_nothing_new(before)


def test_a_handle_of_a_process_that_is_gone() -> None:
    gone = RankProcess(1, 2)
    handle = bytes.fromhex(gone.hear()["handle"])
    gone.kill()
    gone.end()
    own = Communicator(0, 2, NUM_SLOTS, SEGMENT_BYTES)
    with pytest.raises(OSError, match=rf"exchange memory of a peer, /proc/{gone.process.pid}/fd/"):
        own.open([own.handle(), handle], NUM_SLOTS)
    own.close()


def test_no_room_for_the_region() -> None:
    rank = RankProcess(0, 8, "65536")
    heard = rank.hear()
    assert heard["errno"] == errno.EFBIG
    assert "bytes of exchange memory" in heard["error"]
    assert rank.end() == 0


def test_closing_gives_all_memory_back() -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:splitrank")

    before = held()
    ranks = [Communicator(rank, 4, NUM_SLOTS, SEGMENT_BYTES) for rank in range(4)]
    handles = [communicator.handle() for communicator in ranks]
    for communicator in ranks:
        communicator.open(handles, NUM_SLOTS)
    assert held() == (before[0] + 4, before[1] + 16)
    for communicator in ranks:
        communicator.close()
    assert held() == before
