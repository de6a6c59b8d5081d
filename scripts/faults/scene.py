"""The surroundings of one case: a folder, a mark by which all processes of the case are known, and what may be left."""

import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]
from case import POLL_S, CaseFailed

ROOT = Path(__file__).parents[2]
MARK = "SPLITRANK_FAULT_CASE"  # environment variable that a process of a case has, and every process that it starts
END_S = 30.0  # the promise for the end of all processes, whatever has happened
SHARED_MEMORY = Path("/dev/shm")


class Scene:
    """``with Scene() as scene: ...``; at the end everything that is left is killed and removed.

    ``check_nothing_left`` says whether there was something.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.ports: list[int] = []
        self.times: dict[str, float] = {}  # seconds, by what took them
        self._shared_before = _shared_memory()

    @property
    def environment(self) -> dict[str, str]:
        """Of every program of this case."""
        return {**os.environ, "TMPDIR": str(self.folder), MARK: self._mark, "PYTHONPATH": str(ROOT)}

    def command(self, *arguments: object) -> list[str]:
        """A ``splitrank`` command line."""
        return [sys.executable, "-P", "-m", "splitrank.serving", *map(str, arguments)]

    def free_port(self) -> int:
        """A port that was free a moment ago. The case checks that it is free again at the end."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
        self.ports.append(port)
        return port

    def processes(self) -> list[psutil.Process]:
        """Every living process of this case."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            return not dead and process.environ().get(MARK) == self._mark
        except psutil.Error:
            return False  # it has ended meanwhile, or is another user's

    def check_nothing_left(self, limit_s: float = END_S) -> None:
        """Waits for the end of all that the case has started: processes, ports, run folders, shared memory."""
        began = time.monotonic()
        while left := self.leftovers():
            if time.monotonic() - began > limit_s:
                raise CaseFailed(f"left behind after {limit_s:g} s: {', '.join(left)}")
            time.sleep(POLL_S)

    def leftovers(self) -> list[str]:
        """In words; empty if there is nothing."""
        left = [f"process {process.pid}" for process in self.processes()]
        left += [f"port {port}" for port in self.ports if not _is_free(port)]
        left += [f"run folder {path.name}" for path in self.folder.glob("**/splitrank-*")]
        return left + [f"shared memory {name}" for name in sorted(_shared_memory() - self._shared_before)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            return False
    return True
