"""Ranks and commands of the tests as processes, forked from one that has imported torch and the server: most of a
short process's time is those imports.

For ranks that a test itself starts, and for commands that end before they start any. What users start, a server or an
``LLM``, starts its ranks as it always does.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

from splitrank.serving.options.config import child_environment
from tests.support.limits import PROGRAM_S, scaled

ROOT = Path(__file__).parents[2]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "safetensors.torch",
        "splitrank.comm.mesh",
        "splitrank.serving.rank.worker",
        "splitrank.serving.http.server",
    ]
)


class ForkedProcess:
    """``python -m module arguments`` with what a test needs of ``subprocess.Popen``; output and errors are pipes.
    Without an ``environment`` it has a rank's."""

    def __init__(self, module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        pipes = [_context.Pipe(duplex=False) for _ in range(2)]
        variables = child_environment() if environment is None else environment
        job = (module, [*map(str, arguments)], variables, *(writer for _, writer in pipes))
        self._process = _context.Process(target=_run, args=job)
        self._process.start()
        self.stdout, self._stderr = (_text(reader) for reader, _ in pipes)
        for _, writer in pipes:
            writer.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

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
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        for reader in readers:
            reader.join(timeout)
        return said[0], said[1]

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


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
    module: str, arguments: list[str], environment: Mapping[str, str], output: Connection, errors: Connection
) -> None:
    """In the process: what an interpreter does that was started for this module."""
    for connection, number in ((output, 1), (errors, 2)):
        os.dup2(connection.fileno(), number)
        connection.close()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as TMPDIR says now
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # not run at the end of a forked process
