"""Standard streams that may be closed, or that nobody reads: a failed write to them is no error."""

import os
import sys
import threading
from typing import Any, NoReturn, TextIO, cast


class LenientStream:
    """Writes to ``stream``. A broken pipe, a full disk or a closed terminal is no error."""

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
    """From now on, no write of this process to sys.stderr, or to the other streams in ``names``, raises.

    Closed descriptors (``2>&-``) are opened on /dev/null. Otherwise the next socket would get the number of stderr, and
    children would write their messages into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            assert os.open(os.devnull, os.O_RDWR) == number
    for name in ("stderr", *names):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
        setattr(sys, name, lenient(stream))


def stop_output() -> None:
    """What is still to be written to stdout goes nowhere; else the interpreter would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def exit_process(code: int) -> NoReturn:
    """Ends the process without waiting for threads of a start that was cancelled: the interpreter would wait for the
    thread pool of a download, although its threads are daemons."""
    if threading.active_count() > 1:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                lenient(stream).flush()
        os._exit(code)
    raise SystemExit(code)
