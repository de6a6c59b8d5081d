"""Servers whose stdout and stderr nobody reads do what all others do."""

import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.servers import EXIT_S, ROOT, environment, processes_of, run_dirs, splitrank_command
from tests.support.front_fakes import free_port
from tests.support.limits import PROGRAM_S, START_S, scaled

REQUEST = {"prompt": "Once", "max_tokens": 150, "ignore_eos": True, "stream": True}


def wait_until_ready(http: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + scaled(START_S)
    while process.poll() is None:
        try:
            if http.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the server was not ready in time"
        time.sleep(0.05)
    raise AssertionError(f"the server ended with code {process.returncode}")


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param("2>&-", marks=pytest.mark.full, id="stderr"),
        pytest.param(">&- 2>&-", id="both"),
        pytest.param("> >(true) 2>&1", id="readers left"),
    ],
)
def test_a_server_that_nobody_reads_starts_serves_and_drains(streams: str, temporary: Path) -> None:
    port = free_port()
    options = ("--threads-per-rank", 1, "--max-model-len", 1024, "--drain-timeout-s", 100)
    serve = splitrank_command("serve", "--port", port, *options)
    command = ["bash", "-c", f'exec "$0" "$@" {streams}', *serve]
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment(temporary)) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=scaled(PROGRAM_S)) as http,
    ):
        try:
            wait_until_ready(http, process)
            with http.stream("POST", "/v1/completions", json=REQUEST) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
            assert process.wait(scaled(EXIT_S)) == 0
        finally:
            process.kill()
    assert not processes_of(temporary)
    assert not run_dirs(temporary)
