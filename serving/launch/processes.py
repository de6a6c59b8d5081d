"""Child processes: start, watch, end and reap them; and make a child end with its parent."""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

from splitrank.serving.options.config import child_environment

POLL_S = 0.02
PARENT_POLL_S = 0.5
PR_SET_PDEATHSIG = 1  # of linux/prctl.h: the signal that this process gets when its parent dies


@dataclass(frozen=True)
class Child:
    name: str
    popen: subprocess.Popen[bytes]

    def describe_exit(self) -> str | None:
        """How the child ended; None while it runs."""
        code = self.popen.poll()
        if code is None:
            return None
        if code >= 0:
            return f"{self.name} exited with code {code}"
        return f"{self.name} was killed by signal {-code} ({signal.Signals(-code).name})"

    @property
    def was_killed(self) -> bool:
        return (self.popen.poll() or 0) < 0


class Children:
    """The processes of one engine. Their stdout goes to stderr: stdout belongs to the command."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def spawn(self, name: str, command: list[str], descriptor: int | None = None) -> None:
        """``descriptor``: one more that the process inherits, under its number."""
        # A session of its own: Ctrl-C at the terminal reaches the front alone, which then ends its children in order.
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            env=child_environment(),
            start_new_session=True,
            pass_fds=() if descriptor is None else (descriptor,),
        )
        self._children.append(Child(name, popen))

    @property
    def pids(self) -> dict[str, int]:
        return {child.name: child.popen.pid for child in self._children}

    def running(self) -> list[str]:
        return [child.name for child in self._children if child.popen.poll() is None]

    def first_exit(self) -> Child | None:
        """A child that has exited, None without any; a killed one first, because the others may have ended after it."""
        gone = [child for child in self._children if child.popen.poll() is not None]
        return min(gone, key=lambda child: not child.was_killed, default=None)

    def signal(self, number: signal.Signals) -> None:
        for child in self._children:
            child.popen.send_signal(number)  # does nothing to a child that is reaped

    async def wait(self, timeout_s: float) -> bool:
        """Whether all have exited, and are reaped, within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def end(self, exit_limit_s: float) -> list[str]:
        """Waits until they exit by themselves, then terminates, then kills. Names those that outlive SIGKILL."""
        if not await self.wait(exit_limit_s):
            self.signal(signal.SIGTERM)
        if not await self.wait(2.0):
            self.signal(signal.SIGKILL)
        await self.wait(5.0)
        return self.running()


def exit_with_parent(parent_pid: int, run_dir: str | None = None) -> None:
    """From now on this process ends within a second of its parent, whatever its other threads do, and removes the run
    folder, if it has one. A stopped process (SIGSTOP) is continued first."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(PARENT_POLL_S)
        if run_dir is not None:
            shutil.rmtree(run_dir, ignore_errors=True)
        os._exit(1)

    # Not SIGKILL: nobody would remove the run folder, and the kernel sends the signal already when the *thread* that
    # forked ends. SIGCONT does nothing then.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
