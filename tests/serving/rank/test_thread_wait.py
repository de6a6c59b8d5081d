"""Threads wait awake on cores of their own, and sleep soon on shared ones."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrank.serving.rank.thread_wait import ALONE_FOR_S, ENOUGH_S, CoreTime, ThreadWait, core_time
from tests.support.limits import ANSWER_S, PROGRAM_S, scaled


class Machine:
    """A clock, and what two threads have computed and waited for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core_time = CoreTime(50.0, 5.0)

    def run(self, wait: ThreadWait, seconds: float, share: float) -> None:
        """In steps that are just long enough to be judged."""
        for _ in range(round(seconds / ENOUGH_S)):
            self.now += 1.01 * ENOUGH_S
            computing, waiting = self.core_time
            both = 2 * ENOUGH_S
            self.core_time = CoreTime(computing + both * (1 - share), waiting + both * share)
            wait.look()


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def wait(machine: Machine) -> Iterator[ThreadWait]:
    wait = ThreadWait(2, lambda: machine.core_time, lambda: machine.now)
    yield wait
    wait.close()


def test_it_changes_over_and_back(machine: Machine, wait: ThreadWait) -> None:
    before = num_threads()
    machine.run(wait, 5, share=0.05)
    assert not wait.is_short
    assert num_threads() == before
    machine.run(wait, ENOUGH_S, share=0.3)
    assert wait.is_short
    assert num_threads() == before + len(os.sched_getaffinity(0)) + 1
    machine.run(wait, 5 * ALONE_FOR_S, share=0.15)  # still shared: threads that sleep wait less for a core
    assert wait.is_short
    machine.run(wait, 2 * ALONE_FOR_S, share=0.02)
    assert not wait.is_short
    ends = time.monotonic() + scaled(ANSWER_S)
    while num_threads() != before:  # the team's threads end by themselves
        assert time.monotonic() < ends, "the spare team is still there"
        time.sleep(0.01)


def test_a_short_step_is_not_judged_by_itself(machine: Machine, wait: ThreadWait) -> None:
    """After minutes of nothing to do: what it waited belongs to the steps, not to the minutes."""
    machine.now += 600
    machine.core_time = CoreTime(50.0, 5.0 + 0.9 * ENOUGH_S)
    wait.look()
    assert not wait.is_short
    machine.run(wait, ENOUGH_S, share=0.0)
    assert wait.is_short


@pytest.mark.parametrize("num_threads", [1, 2])
def test_one_thread_waits_for_nobody_and_without_counters_nothing_changes(num_threads: int) -> None:
    machine = Machine()
    wait = ThreadWait(
        num_threads, (lambda: None) if num_threads > 1 else (lambda: machine.core_time), lambda: machine.now
    )
    machine.run(wait, 1, share=1.0)
    assert not wait.is_short


def test_the_kernel_counts() -> None:
    first = core_time()
    if first is None:
        pytest.skip("this kernel has no schedstat")
    sum(range(1_000_000))
    second = core_time()
    assert second is not None
    assert second.computing > first.computing
    assert second.waiting >= first.waiting >= 0


# Two threads compute, then their main thread looks how the other one waits: R (awake) or S (asleep).
WAITS = """
import os, sys, time, torch
from pathlib import Path
from splitrank.serving.rank.thread_wait import CoreTime, ThreadWait
torch.set_num_threads(2)
before = set(os.listdir("/proc/self/task"))
torch.ones(1 << 20).sin_()
(other,) = set(os.listdir("/proc/self/task")) - before
ends = time.monotonic() + float(sys.argv[1])
def becomes(state):
    while time.monotonic() < ends:
        torch.ones(1 << 20).sin_()
        seen = set()
        for _ in range(20):
            time.sleep(0.001)
            seen.add(Path(f"/proc/self/task/{other}/stat").read_text().rpartition(")")[2].split()[0])
        if seen == {state}:
            return True
    return False
now = waited = 0.0
wait = ThreadWait(2, lambda: CoreTime(now, waited), lambda: now)
assert becomes("R"), "asleep"
now = waited = 1.0
wait.look()
assert wait.is_short
assert becomes("S"), "awake"
"""


def test_a_waiting_thread_is_awake_and_then_asleep_soon() -> None:
    """With so many spins that it would be awake for a minute."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two threads on one core never wait awake")
    environment = os.environ | {"GOMP_SPINCOUNT": str(10**10), "PYTHONPATH": str(Path(__file__).parents[3])}
    limit = scaled(PROGRAM_S)
    finished = subprocess.run(
        [sys.executable, "-c", WAITS, str(limit / 3)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert finished.returncode == 0, finished.stderr
