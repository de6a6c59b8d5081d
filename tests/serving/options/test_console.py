"""The command line as a process: streams that nobody reads, and starts that are broken off."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from splitrank.serving.options.console import LenientStream, lenient
from splitrank.serving.options.progress import progress
from tests.support.limits import PROGRAM_S, scaled

LIMIT_S = scaled(PROGRAM_S)


class Broken(io.StringIO):
    """A pipe without a reader."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_goes_on_without_a_reader(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0
    monkeypatch.setattr("sys.stderr", Broken(is_terminal))
    with progress(3, "work", "items") as bar:
        for _ in range(3):
            done += 1
            bar.update()
    monkeypatch.setattr("sys.stderr", None)
    with progress(1, "work", "items") as bar:
        bar.update()
    assert done == 3


def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    stream.close()
    print("x", file=lenient(stream), flush=True)
    assert LenientStream(stream).closed  # everything else is the stream's own


# ------------------------------------------------------------------ processes

STREAMS = """
import os, socket, sys
from splitrank.serving.options.console import be_lenient_with_streams
be_lenient_with_streams("stdout")
numbers = [os.open(os.devnull, os.O_RDONLY), *(end.fileno() for end in socket.socketpair())]
assert min(numbers) > 2, numbers
for stream in (sys.stdout, sys.stderr):
    print("x" * 100_000, file=stream, flush=True)
"""


@pytest.mark.parametrize("how", ["0<&- 1>&- 2>&-", "2>&-", "1>&-", "2>/dev/full", ">/dev/full 2>&1", "> >(true) 2>&1"])
def test_streams_that_take_nothing(how: str) -> None:
    finished = subprocess.run(["bash", "-c", f'"$0" -c "$1" {how}', sys.executable, STREAMS], timeout=LIMIT_S)
    assert finished.returncode == 0


@contextmanager
def command(program: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The ``splitrank`` command after ``program`` has changed something in it; ended whatever a test does."""
    # A shell starts what runs in its background with Ctrl-C ignored, and a child inherits that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + program
    program += "\nfrom splitrank.serving.cli import console; console()"
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


# What snapshot_download does: threads of a pool, for which the pool, asyncio and the interpreter all wait.
LONG = """
import time
from concurrent.futures import ThreadPoolExecutor

def download(*_, **__):
    with ThreadPoolExecutor(2) as pool:
        print("begun", flush=True)
        list(pool.map(time.sleep, [600, 600]))
"""
LONG_PREPARE = LONG + "from splitrank.serving.text import text_engine; text_engine.prepare_model = download"
LONG_DOWNLOAD = LONG + "import huggingface_hub; huggingface_hub.snapshot_download = download"


@pytest.mark.parametrize(
    ("program", "arguments", "number", "code"),
    [
        (LONG_PREPARE, ["serve", "--port", "0"], signal.SIGTERM, 0),
        (LONG_PREPARE, ["serve", "--port", "0"], signal.SIGINT, 0),
        (LONG_DOWNLOAD, ["serve", "--port", "0", "--model", "some/model"], signal.SIGTERM, 0),
        (LONG_DOWNLOAD, ["generate", "--model", "some/model"], signal.SIGINT, 130),
        (LONG_DOWNLOAD, ["plan", "--model", "some/model"], signal.SIGINT, 130),
    ],
    ids=["serve SIGTERM", "serve SIGINT", "serve download", "generate download", "plan download"],
)
def test_a_signal_ends_a_start_at_once(
    program: str, arguments: list[str], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    if arguments[0] == "generate":
        (tmp_path / "in.jsonl").write_text("{}")
        arguments = [*arguments, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    with command(program, *arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        assert process.wait(LIMIT_S) == code


def test_the_run_folder_of_a_broken_start_is_gone() -> None:
    program = LONG + (
        "from splitrank.serving.launch import engine_client\n"
        "make = engine_client.make_run_dir\n"
        "def slow(*arguments):\n"
        "    spec = make(*arguments); print('begun', flush=True); return spec\n"
        "engine_client.make_run_dir = slow"
    )
    with tempfile.TemporaryDirectory(prefix="sr-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        with command(program, "serve", "--port", "0") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
        assert os.listdir(folder) == []
