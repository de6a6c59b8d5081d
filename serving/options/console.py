"""Standard streams that may be closed, or read by nobody: what a process says never changes what it does."""

import os
import sys
import threading
from typing import Any, NoReturn, TextIO, cast


class LenientStream:
    """Writes to ``stream`` while it takes anything: a broken pipe, a full disk, a hung-up terminal are no errors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: closed
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lenient(stream: TextIO) -> TextIO:
    return cast(TextIO, LenientStream(stream))


def be_lenient_with_streams(*names: str) -> None:
    """From now on, nothing that this process writes to sys.stderr (``names``: to others, too) raises.

    Closed descriptors (``2>&-``) are opened on /dev/null: the next socket would get the number, and children that write
    to their stderr would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            assert os.open(os.devnull, os.O_RDWR) == number
    for name in ("stderr", *names):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
        setattr(sys, name, lenient(stream))


def leave(code: int) -> NoReturn:
    """Ends the process. Threads of a start that was broken off are not waited for: the interpreter would wait for the
    pool of a download, although its threads are daemons."""
    if threading.active_count() > 1:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                lenient(stream).flush()
        os._exit(code)
    raise SystemExit(code)
