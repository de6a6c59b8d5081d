"""How long torch's threads spin while they wait for each other: long on cores of their own, shortly on shared cores.

The threads of an operation wait for each other thousands of times a step. If they sleep instead of spinning, a decode
step takes up to twice as long. If another process has taken a core, spinning is worse: the waiting threads use up the
time slice that the missing thread needs, and a step took 20 times as long as with one thread. So a rank measures how
long its threads have waited for a core, and switches between the two.

libgomp has no call to switch, but a rule (its manual, ``GOMP_SPINCOUNT``): while a process has more OpenMP threads than
cores, they spin 100 times instead of 30,000 (``child_environment``). A spare team of sleeping threads makes it so.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# A measurement needs so much time of computing and waiting: a time slice is 3 ms and a step of a small model 2, so less
# would be chance. An idle rank measures nothing.
ENOUGH_S = 0.05
# Time of waiting for a core, divided by waiting plus computing. Two threads on two cores: alone 0.01 to 0.05; beside a
# busy process 0.3 to 0.45 while they spin, and 0.25 to 0.3 while they sleep.
SHARED_ABOVE = 0.18
ALONE_BELOW = 0.1
ALONE_FOR_S = 0.25  # short, so that a process that was busy for a moment only does not slow many steps down


class CoreTime(NamedTuple):
    """Seconds of all threads of this process."""

    computing: float
    waiting: float  # ready to run, but without a core


def core_time() -> CoreTime | None:
    """None if the kernel keeps no ``schedstat``."""
    computing = waiting = 0
    try:
        for thread in os.listdir("/proc/self/task"):
            fields = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
            computing += int(fields[0])
            waiting += int(fields[1])
    except (OSError, IndexError, ValueError):
        return None
    return CoreTime(computing / 1e9, waiting / 1e9)


class ThreadWait:
    """Switches between long and short spinning on one rank. ``look`` is called after each step. Without libgomp or
    ``schedstat`` it changes nothing."""

    def __init__(
        self,
        num_threads: int,
        core_time: Callable[[], CoreTime | None] = core_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core_time, self._clock = core_time, clock
        self._libgomp = _loaded_libgomp() if num_threads > 1 else None
        self._spare: _SpareTeam | None = None
        self._seen = core_time() if self._libgomp else None
        self._looked_at = self._shared_at = clock()

    @property
    def is_short(self) -> bool:
        """Whether the threads spin only shortly now."""
        return self._spare is not None

    def look(self) -> None:
        now = self._clock()
        if self._seen is None or now - self._looked_at < ENOUGH_S:
            return
        self._looked_at = now
        seen = self._core_time()
        if seen is None:
            return
        computing, waiting = seen.computing - self._seen.computing, seen.waiting - self._seen.waiting
        if computing + waiting >= ENOUGH_S:
            self._seen = seen
            self._judge(waiting / (computing + waiting), now)

    def _judge(self, share: float, now: float) -> None:
        if share > ALONE_BELOW:
            self._shared_at = now
        if share > SHARED_ABOVE and self._spare is None and self._libgomp is not None:
            self._spare = _SpareTeam(self._libgomp)
        elif self._spare is not None and now - self._shared_at > ALONE_FOR_S:
            self.close()

    def close(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None


class _SpareTeam:
    """A team of one OpenMP thread more than there are cores; they sleep until ``close``."""

    def __init__(self, libgomp: ctypes.CDLL) -> None:
        self._libgomp, self._formed, self._end = libgomp, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="spare team", daemon=True)
        self._thread.start()
        self._formed.wait()

    def _run(self) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)  # the function that each thread runs
        self._libgomp.GOMP_parallel(nothing, None, len(os.sched_getaffinity(0)) + 1, 0)
        self._formed.set()
        self._end.wait()  # libgomp ends a team when the thread ends that has formed it

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def _loaded_libgomp() -> ctypes.CDLL | None:
    """The library that torch has loaded; None without one."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if "libgomp" in path:
            return ctypes.CDLL(path)
    return None
