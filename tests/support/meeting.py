"""Ranks of a test wait for each other by files in a folder that they share: one that is slow to start, or slow to
receive, must not look like one that is missing."""

import time
from pathlib import Path

from tests.support.limits import PROGRAM_S, scaled

POLL_S = 0.01


def meet(folder: Path, name: str, rank: int, num_ranks: int) -> None:
    """Returns when all ranks are here. Each place has a ``name`` of its own in ``folder``."""
    mark(folder, f"{name}-{rank}")
    for other in range(num_ranks):
        wait_for_mark(folder, f"{name}-{other}")


def mark(folder: Path, name: str) -> None:
    """Says that something has happened."""
    (folder / name).touch()


def wait_for_mark(folder: Path, name: str) -> None:
    """Until it has happened. Fails with its name if it takes too long."""
    deadline = time.monotonic() + scaled(PROGRAM_S)
    while not (folder / name).exists():
        assert time.monotonic() < deadline, f"waited {scaled(PROGRAM_S):g} s for {name}"
        time.sleep(POLL_S)
