"""Processes of the tests, forked from one that has imported torch and the server: most of a short process's CPU time is
those imports.

For ranks that a test itself starts, and for commands and engines whose answers a test compares. Where a test shows how
processes start and end (``e2e/test_death.py``, ``test_stopping.py``, ...), they start as users start them.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO
from unittest import mock

from splitrank.serving.launch.processes import Child, Children
from splitrank.serving.options.config import child_environment
from tests.support.limits import PROGRAM_S, scaled

ROOT = Path(__file__).parents[2]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "safetensors.torch",
        "splitrank.comm.mesh",
        "splitrank.serving.rank.rank",
        "splitrank.serving.engine.engine",
        "splitrank.serving.http.server",
    ]
)


class Forked:
    """``python -m module arguments`` with what ``Children`` and tests need of ``subprocess.Popen``. The process writes
    to ``outputs``, two descriptors that stay open here. Without an ``environment`` it has a rank's."""

    def __init__(
        self, module: str, arguments: Sequence[object], environment: Mapping[str, str] | None, outputs: tuple[int, int]
    ) -> None:
        variables = dict(child_environment() if environment is None else environment)
        writers = [Connection(os.dup(number), readable=False) for number in outputs]
        job = (module, [*map(str, arguments)], variables, os.getpid(), *writers)
        self._process = _context.Process(target=_run, args=job)
        self._process.start()
        for writer in writers:
            writer.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing to a process that has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


class ForkedProcess(Forked):
    """Output and errors are pipes."""

    def __init__(self, module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        pipes = [_context.Pipe(duplex=False) for _ in range(2)]
        super().__init__(module, arguments, environment, tuple(writer.fileno() for _, writer in pipes))
        self.stdout, self._stderr = (_text(reader) for reader, _ in pipes)
        for _, writer in pipes:
            writer.close()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Output and errors once it has ended, as far as they are not read yet. They are closed."""
        said = ["", ""]

        def read(place: int, pipe: TextIO) -> None:
            with pipe:
                said[place] = pipe.read()

        pipes = [(place, pipe) for place, pipe in enumerate((self.stdout, self._stderr)) if not pipe.closed]
        readers = [threading.Thread(target=read, args=pipe, daemon=True) for pipe in pipes]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said[0], said[1]


@contextmanager
def forked_children() -> Iterator[None]:
    """Engines and ranks that this process's launcher starts inside the block are forked."""

    def spawn(children: Children, name: str, command: list[str], descriptor: int | None = None) -> None:
        assert descriptor is None, "a forked rank inherits no listening socket"
        module, *arguments = command[command.index("-m") + 1 :]
        children._children.append(Child(name, Forked(module, arguments, None, (2, 2))))  # type: ignore[arg-type]

    with mock.patch.object(Children, "spawn", spawn):
        yield


def finish_all(ranks: Sequence[ForkedProcess]) -> list[str]:
    """What each of these ranks, which run side by side, has printed; one that fails takes the others along."""
    outputs = []
    try:
        for number, rank in enumerate(ranks):
            output, errors = rank.communicate(timeout=scaled(PROGRAM_S))
            assert rank.returncode == 0, f"rank {number}: {errors}"
            outputs.append(output)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return outputs


def _text(reader: Connection) -> TextIO:
    with reader:
        return os.fdopen(os.dup(reader.fileno()), encoding="utf-8")


def _run(
    module: str,
    arguments: list[str],
    environment: Mapping[str, str],
    parent_pid: int,
    output: Connection,
    errors: Connection,
) -> None:
    """In the process: what an interpreter does that was started for this module."""
    for connection, number in ((output, 1), (errors, 2)):
        os.dup2(connection.fileno(), number)
        connection.close()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as TMPDIR says now
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = [module, *arguments]
    _show_command(["-m", *sys.argv])
    _take_parent(parent_pid)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # not run at the end of a forked process


def _show_command(words: Sequence[str]) -> None:
    """As the command line of this process, in place of the fork server's: by it, tests find what is left."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    line = " ".join(words).encode() + b"\0"
    room = end - start
    assert len(line) < room, f"a command line of {len(line)} bytes, there is room for {room}"
    # Its last byte is not 0: by this the kernel knows one that was written later, which ends at its first 0 (proc(5)).
    ctypes.memmove(start, line.ljust(room - 1, b"\0") + b"1", room)


def _take_parent(pid: int) -> None:
    """Who has asked for this process counts as its parent, as long as it lives, and not the fork server. What this
    process forks comes from the same server."""
    asked = multiprocessing.parent_process()
    assert asked is not None
    os.getppid = lambda: pid if asked.is_alive() else 1
    forkserver._forkserver.ensure_running = lambda: None  # by itself it looks for a server that it has started
