"""Real servers for the tests: started as users start them, watched from outside, and ended whatever a test does."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import openai
import psutil

from tests.support.forked import Forked, ForkedProcess
from tests.support.limits import PROGRAM_S, START_S, scaled

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo"
EXIT_S = 30.0  # the promise of the design for any end
POLL_S = 0.05
FORKING = "tests.support.forking_splitrank"


def wait_until(condition: Callable[[], object], what: str, limit_s: float = EXIT_S) -> None:
    """Polls; fails with ``what`` was awaited after ``limit_s`` of a quiet machine."""
    limit_s = scaled(limit_s)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(POLL_S)


def splitrank_command(*arguments: object, module: str = "splitrank.serving") -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def environment(temporary: Path) -> dict[str, str]:
    """This process's, with a temporary folder of its own: what is left behind there shows."""
    return {**os.environ, "TMPDIR": str(temporary)}


def processes_of(temporary: Path) -> list[psutil.Process]:
    """Every process whose command line names the folder: engine and ranks have their run folder in it."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(temporary) in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass  # it has ended meanwhile
    return found


def run_dirs(temporary: Path) -> list[Path]:
    return list(temporary.glob("splitrank-*"))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Not pytest's: its path would be too long for the sockets in it. Kills the processes that name it."""
    folder = Path(tempfile.mkdtemp(prefix="e2e-"))
    try:
        yield folder
    finally:
        for process in processes_of(folder):
            with suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def run_command(
    temporary: Path, *arguments: object, limit_s: float = PROGRAM_S, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A whole ``splitrank`` command; past the limit its processes are killed. ``variables`` of its environment."""
    command = splitrank_command(*arguments)
    environ = environment(temporary) | variables
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=scaled(limit_s))


def run_forked(
    temporary: Path, *arguments: object, limit_s: float = PROGRAM_S, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same, all processes forked (``forked.py``): where a test shows what they answer, not how they start."""
    process = ForkedProcess(FORKING, *arguments, environment=environment(temporary) | variables)
    try:
        output, errors = process.communicate(scaled(limit_s))
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess([*map(str, arguments)], process.returncode, output, errors)


class Server:
    """``splitrank serve`` on a free port. ``with Server("--pp", 2) as server: ...`` kills what a test leaves."""

    def __init__(self, *arguments: object, module: str = "splitrank.serving", **variables: str) -> None:
        self._folder = temporary_folder()
        self.temporary = self._folder.__enter__()
        self._files = [open(self.temporary / name, "w") for name in ("stdout", "stderr")]  # noqa: SIM115
        self._environment = environment(self.temporary) | variables
        # Not pinned: other tests run beside it.
        options = ("--port", 0, "--threads-per-rank", 1, "--pin-threads", "off", *arguments)
        self.process = self._start(module, "serve", *options)
        try:
            wait_until(lambda: self._address or self.process.poll() is not None, "the server's start", START_S)
            assert self._address, f"the server ended with code {self.process.poll()}: {self.stderr}"
        except BaseException:
            self.kill()
            raise
        self.url = self._address
        self.http = httpx.Client(base_url=self.url, timeout=scaled(PROGRAM_S))
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key="none", timeout=scaled(PROGRAM_S), max_retries=0)

    def _start(self, module: str, *arguments: object) -> subprocess.Popen[bytes] | Forked:
        return subprocess.Popen(
            splitrank_command(*arguments, module=module),
            cwd=ROOT,
            env=self._environment,
            stdout=self._files[0],
            stderr=self._files[1],
        )

    @property
    def _address(self) -> str:
        text = (self.temporary / "stdout").read_text()
        return text.split()[-1] if text.endswith("\n") else ""

    @property
    def stderr(self) -> str:
        return (self.temporary / "stderr").read_text()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def model(self) -> str:
        return "demo"

    def rank(self, number: int) -> psutil.Process:
        """The process of one rank."""
        (found,) = [p for p in processes_of(self.temporary) if p.cmdline()[-2:] == ["--rank", str(number)]]
        return found

    def metric(self, name: str) -> float:
        """Value of a metric of ours without labels, or of one of vLLM's (``vllm:...``) with the model's name."""
        sample = f'{name}{{model_name="{self.model}"}}' if name.startswith("vllm:") else f"splitrank_{name}"
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{sample} ")))

    def is_idle(self) -> bool:
        """All slots and pages are back."""
        return all(
            self.metric(f"engine_free_{name}") == self.metric(f"engine_num_{name}") for name in ("slots", "pages")
        )

    def wait_exit(self, limit_s: float = EXIT_S) -> int:
        return self.process.wait(timeout=scaled(limit_s))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=scaled(EXIT_S))
        for file in self._files:
            file.close()
        self._folder.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.close()
        self.client.close()
        self.kill()


class ForkedServer(Server):
    """With all its processes forked: where a test shows what they answer, not how they start and end."""

    def _start(self, module: str, *arguments: object) -> Forked:
        output, errors = self._files
        return Forked(FORKING, arguments, self._environment, (output.fileno(), errors.fileno()))
