"""What a test leaves in the machine's shared memory. Other programs use it too, at any moment."""

import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from tests.support.limits import SLACK_S, scaled

FOLDER = Path("/dev/shm")
POLL_S = 0.05


def names() -> set[str]:
    """Of all files that are there."""
    return {path.name for path in FOLDER.iterdir()}


def assert_nothing_new(before: set[str], own: Collection[int] = ()) -> None:
    """Fails with the names that were not there ``before`` and that no process uses, or one of ``own``.

    A file that another process has open or mapped is that program's. It may unlink it a moment after it was closed, so
    what is found is looked at again for a while.
    """
    deadline = time.monotonic() + scaled(SLACK_S)
    while left := _left(before, own):
        assert time.monotonic() < deadline, f"left in {FOLDER}: {', '.join(sorted(left))}"
        time.sleep(POLL_S)


def _left(before: set[str], own: Collection[int]) -> set[str]:
    new = names() - before
    if not new:
        return new
    used_by_others = {name for process in _processes() if process not in own for name in _used_by(process)}
    return new - used_by_others


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _used_by(process: int) -> set[str]:
    """Files in shared memory that a process has open or mapped; none if it has ended, or is not ours to look at."""
    paths: list[str] = []
    with suppress(OSError):
        for link in list(Path(f"/proc/{process}/fd").iterdir()):
            with suppress(OSError):  # closed meanwhile
                paths.append(os.readlink(link))
    with suppress(OSError):
        paths += [line[line.find("/") :] for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    inside = [path.removeprefix(f"{FOLDER}/") for path in paths if path.startswith(f"{FOLDER}/")]
    return {name.removesuffix(" (deleted)") for name in inside}
