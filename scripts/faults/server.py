"""``splitrank serve`` as a program that a case starts, asks and harms."""

import json
import signal
import subprocess
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from case import CaseFailed, demand, wait_for
from scene import END_S, ROOT, Scene

START_S = 120.0
ASK_S = 60.0
HEARTBEAT_S = 3  # --heartbeat-timeout-s of all cases: a stopped process is to be noticed soon
# float32: there the composition of a batch changes no greedy token, so that answers can be compared.
COMMON = ("--dtype", "float32", "--threads-per-rank", 1, "--heartbeat-timeout-s", HEARTBEAT_S)


class Server:
    """It is started, not ready. ``prefix``: words before the command line; ``log``: file for stderr; ``environment``:
    variables besides the scene's."""

    def __init__(
        self,
        scene: Scene,
        *arguments: object,
        prefix: tuple[str, ...] = (),
        port: int = 0,
        log: Path | None = None,
        **environment: str,
    ) -> None:
        self.scene = scene
        self.port = port or scene.free_port()
        command = [*prefix, *scene.command("serve", "--port", self.port, *COMMON, *arguments)]
        self._stdout, self._stderr = scene.folder / "stdout", log or scene.folder / "stderr"
        with open(self._stdout, "w") as stdout, open(self._stderr, "w") as stderr:
            environ = scene.environment | environment
            self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=stdout, stderr=stderr)

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        return " | ".join(self.stderr.splitlines()[-3:])

    def wait_ready(self) -> None:
        def ready_or_gone() -> bool:
            return self.process.poll() is not None or "serving" in self.stdout

        wait_for(ready_or_gone, "the server's start", START_S)
        demand(self.process.poll() is None, f"the server ended with code {self.process.poll()}: {self.last_words}")

    # ------------------------------------------------------------ its processes

    def find(self, role: str) -> psutil.Process | None:
        """``front``, ``engine`` or ``rank N``; None if it does not run."""
        if role == "front":
            return psutil.Process(self.process.pid) if self.process.poll() is None else None
        ending = ["--rank", role.removeprefix("rank ")] if role.startswith("rank") else []
        for process in self.scene.processes():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if "--run-dir" in words and (words[-2:] == ending if ending else "--rank" not in words):
                return process
        return None

    def get(self, role: str, limit_s: float = START_S) -> psutil.Process:
        return wait_for(lambda: self.find(role), role, limit_s)

    def wait_loading(self, role: str) -> None:
        """Until the rank (for engine and front: rank 0) has a file of weights open, which takes milliseconds: so only
        this process is looked at."""
        rank = self.get(role if role.startswith("rank") else "rank 0")

        def has_weights_open() -> bool:
            try:
                links = [file.readlink() for file in Path(f"/proc/{rank.pid}/fd").iterdir()]
            except OSError:  # a file was closed meanwhile
                return False
            return any(link.suffix == ".safetensors" for link in links)

        wait_for(has_weights_open, "the weights to be read", START_S, poll_s=0.001)

    def num_descriptors(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def memory_mib(self) -> int:
        """Of the front."""
        return int(psutil.Process(self.process.pid).memory_info().rss // 2**20)

    # ------------------------------------------------------------ requests

    def ask(self, path: str, body: Any = None, limit_s: float = ASK_S) -> tuple[int, Any]:
        """Status and JSON of one request; (0, name of the error) if there was no answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data else None
        except (OSError, HTTPException) as error:
            return 0, type(error).__name__
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=ASK_S)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return float(next(line.split()[1] for line in lines if line.startswith(f"splitrank_{name} ")))

    def is_idle(self) -> bool:
        """All slots and pages are free."""
        return all(
            self.metric(f"engine_free_{name}") == self.metric(f"engine_num_{name}") for name in ("slots", "pages")
        )

    def wait_idle(self) -> None:
        wait_for(self.is_idle, "slots and pages to be given back", END_S)

    # ------------------------------------------------------------ its end

    def wait_exit(self, limit_s: float = END_S) -> int:
        """The exit code."""
        began = time.monotonic()
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise CaseFailed(f"the server runs {limit_s:g} s later: {self.last_words}") from None
        self.scene.times["exit_s"] = time.monotonic() - began
        demand("Traceback" not in self.stderr, f"a traceback in the log: {self.last_words}")
        return code

    def stop(self) -> None:
        """A clean end, which every case may ask for."""
        self.process.send_signal(signal.SIGTERM)
        code = self.wait_exit()
        demand(code == 0, f"exit code {code} after SIGTERM: {self.last_words}")
