"""Run folders of fronts that were killed: usually the engine removes its own, but there may have been none yet.

A front holds a lock on a file in its folder for as long as it lives, whatever ends it. Not its process id, which the
next process may have by then.
"""

import fcntl
import os
import shutil
from pathlib import Path

LOCK_FILE = "front.lock"
_held: dict[str, int] = {}  # descriptor by run folder, of this process


def hold_lock(run_dir: str) -> None:
    """Until ``release_lock``. The file gets its name when it is locked: nobody finds one that is not."""
    beside, place = Path(run_dir, LOCK_FILE + ".new"), Path(run_dir, LOCK_FILE)
    descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    _held[run_dir] = descriptor
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    beside.rename(place)


def release_lock(run_dir: str) -> None:
    if (descriptor := _held.pop(run_dir, None)) is not None:
        os.close(descriptor)


def remove_ownerless(parent: str, prefix: str) -> None:
    """Removes this user's run folders in ``parent`` that no living front has locked. An error leaves a folder alone."""
    for folder in Path(parent).glob(prefix + "*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if _is_ownerless(folder / LOCK_FILE):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass


def _is_ownerless(lock_file: Path) -> bool:
    descriptor = os.open(lock_file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
