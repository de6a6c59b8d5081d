"""How long a test may wait, in one place: seconds that are plenty on a quiet machine, times how slow this one is now.

Such a limit ends what hangs; it is no claim about speed. So it may be wide: what is slow is not wrong.
"""

import os
import time

ANSWER_S = 20.0  # a server or a thread of this process
PROGRAM_S = 100.0  # a command or a program that a test starts; also a test, unless marked otherwise (pyproject.toml)
COMPARISON_S = 200.0  # a command that starts one engine after the other
START_S = 60.0  # a server
BUILD_S = 300.0  # a compiler
PROOF_S = 600.0  # a test that compiles and computes for minutes
SLACK_S = 5.0  # what comes on top of a limit that is tested itself: processes outnumber the cores

SLOWEST = 10.0  # times as long as on a quiet machine; beyond, a limit would not be worth its name
MEASURED_FOR_S = 10.0
LOOP_ITERATIONS = 1_000_000
LOOP_S = 0.01  # on the machine for which the seconds above were chosen

_measured: dict[str, float] = {}


def scaled(seconds: float) -> float:
    """``seconds`` of a quiet machine on this one as it is now: between once and ``SLOWEST`` times as long."""
    now = time.monotonic()
    if now - _measured.get("when", float("-inf")) > MEASURED_FOR_S:
        _measured.update(when=now, slowness=slowness())
    return seconds * _measured["slowness"]


def slowness() -> float:
    """By the time that a loop takes, and by how many processes there are for each core in the last minute."""
    began = time.perf_counter()
    for _ in range(LOOP_ITERATIONS):
        pass
    loop = (time.perf_counter() - began) / LOOP_S
    waiting = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return min(max(loop, waiting, 1.0), SLOWEST)
