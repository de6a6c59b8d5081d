"""Whatever dies, hangs or lies: every stream ends with the reason, and no process or folder is left."""

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from splitrank.serving.launch.engine_client import EngineClient, EngineDeadError, EngineStartError
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.serving.engine.test_engine import FAKE_RANK, engine, generate, run, until
from tests.support.fake_model import small_spec
from tests.support.fake_rank import DIE, FAIL, HANG, LIE, STOP
from tests.support.limits import ANSWER_S, PROGRAM_S, scaled


@pytest.fixture(autouse=True)
def run_dirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run folders are made here, and here alone. (pytest's own folders have too long a path for a socket.)"""
    with tempfile.TemporaryDirectory(prefix="sr-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def assert_nothing_left(client: EngineClient, folder: Path) -> None:
    assert all(is_gone(pid) for pid in client.pids.values())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "victim", "reason"),
    [
        (DIE, 1, r"rank 1 \(stage 1, tp 0\) was killed by signal 9 \(SIGKILL\)"),
        (DIE, 0, r"rank 0 \(stage 0, tp 0\) was killed by signal 9 \(SIGKILL\)"),
        (FAIL, 0, r"rank 0 \(stage 0, tp 0\) failed in serve: ValueError: an expert has left"),
        (STOP, 1, r"rank 1 \(stage 1, tp 0\) has been silent for more than 2 s; "),
        (HANG, 1, r"step \d+ is not done after 2 s: rank 1 \(stage 1, tp 0\), phase step \d+, (last finished|no) step"),
        (LIE, 1, r"the last stage answers step \d+ with hash another hash, the engine awaits step \d+"),
    ],
)
def test_a_faulty_rank_ends_every_stream(fault: int, victim: int, reason: str, run_dirs: Path) -> None:
    async def test() -> None:
        # A short limit only of what must be noticed by it: a sound rank may be slow.
        limits = {"heartbeat_timeout_s": scaled(ANSWER_S), "step_timeout_s": scaled(ANSWER_S)}
        limits |= {STOP: {"heartbeat_timeout_s": 2.0}, HANG: {"step_timeout_s": 2.0}}.get(fault, {})
        sizes = {"max_model_len": 100_000, "num_pages": 100_000, "vocab_size": 200, "pp_size": 2, "partition": (1, 1)}
        async with engine(**limits, **sizes) as client:
            # Each would run for minutes; the last one waits in the queue.
            names = [[1], [2], [fault, victim], [3], [4], [5], [6]]
            streams = [asyncio.create_task(generate(client, prompt, max_tokens=50_000)) for prompt in names]
            ends = await asyncio.gather(*streams, return_exceptions=True)
            assert all(isinstance(end, EngineDeadError) for end in ends)
            assert client.died.is_set()
            with pytest.raises(EngineDeadError, match=reason):
                await generate(client, [1])
            await client.close()
            assert_nothing_left(client, run_dirs)

    run(test)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, r"engine was killed by signal 9"), (signal.SIGSTOP, r"engine .*silent")]
)
def test_a_lost_engine_process_ends_every_stream(number: signal.Signals, reason: str, run_dirs: Path) -> None:
    async def test() -> None:
        async with engine(heartbeat_timeout_s=2.0, max_model_len=100_000, num_pages=100_000) as client:
            stream = client.stream([1], SamplingParams(max_tokens=50_000))
            await anext(stream)
            os.kill(client.pids["engine"], number)
            with pytest.raises(EngineDeadError, match=reason):
                async for _ in stream:
                    pass
            await client.close()
            assert_nothing_left(client, run_dirs)

    run(test)


@pytest.mark.parametrize("what", ["reading the engine's messages", "watching the processes"])
def test_a_client_that_can_no_longer_hear_dies_with_the_reason(
    what: str, run_dirs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise msgspec.ValidationError("Expected `int`,\ngot `str`")

    async def test() -> None:
        async with engine(max_model_len=100_000, num_pages=100_000) as client:
            stream = client.stream([1], SamplingParams(max_tokens=50_000))
            await anext(stream)
            if what.startswith("reading"):
                monkeypatch.setattr("splitrank.serving.launch.engine_client.decode_engine_to_front", broken)
            else:
                monkeypatch.setattr(client, "_count_silence", broken)
            reason = re.escape(f"{what} failed: ValidationError: Expected `int`, got `str`")
            with pytest.raises(EngineDeadError, match=reason):
                async for _ in stream:
                    pass
            assert client.died.is_set()
            await client.close()
            assert_nothing_left(client, run_dirs)
        assert f"{what} failed" in caplog.text

    run(test)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("fail-load:1", r"^rank 1 \(stage 1, tp 0\) failed in load: ValueError: the checkpoint is made of cheese$"),
        ("die-load:0", r"^rank 0 \(stage 0, tp 0\) was killed by signal 9 \(SIGKILL\)$"),
        ("hang-load:1", r"^not ready after {limit:g} s: rank 1 \(stage 1, tp 0\), phase load, no step finished yet$"),
    ],
)
def test_a_failed_start_says_who_and_leaves_nothing(fault: str, reason: str, run_dirs: Path) -> None:
    async def test() -> None:
        limit_s = round(scaled(3.0 if fault.startswith("hang") else PROGRAM_S), 1)  # for both ranks to start
        spec = small_spec(model_dir=fault, load_timeout_s=limit_s, pp_size=2, partition=(1, 1))
        with pytest.raises(EngineStartError, match=reason.format(limit=limit_s)):
            await EngineClient.start(spec, FAKE_RANK)

    run(test)
    assert list(run_dirs.iterdir()) == []


def test_a_front_without_descriptors_for_its_socket_leaves_no_folder(
    run_dirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr("splitrank.serving.launch.engine_client.EngineSocket", refused)
    with pytest.raises(zmq.ZMQError, match="Too many open files"):
        run(lambda: EngineClient.start(small_spec(), FAKE_RANK))
    assert list(run_dirs.iterdir()) == []


def test_a_module_that_does_not_run_is_a_failed_start(run_dirs: Path) -> None:
    async def test() -> None:
        with pytest.raises(EngineStartError, match=r"rank 0 .* exited with code 1"):
            await EngineClient.start(small_spec(), "tests.no_such_module")

    run(test)
    assert list(run_dirs.iterdir()) == []


@pytest.mark.parametrize(
    ("rank_module", "reason"),
    [
        (FAKE_RANK, "the checkpoint is made of cheese"),
        ("splitrank.serving.rank.rank_main", "fail-load:0: no such file"),
    ],
)
def test_files_of_the_current_folder_replace_no_module(
    rank_module: str, reason: str, run_dirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of rank get as far as loading, and the engine as far as saying so."""
    here = run_dirs / "here"
    here.mkdir()
    for name in ("random", "tokenize", "torch", "msgspec", "zmq", "splitrank"):
        (here / f"{name}.py").write_text(f"open({str(here / 'was_run')!r}, 'w').write({name!r})\n")
    monkeypatch.chdir(here)

    async def test() -> None:
        with pytest.raises(EngineStartError, match=rf"rank 0 \(stage 0, tp 0\) failed in \w+: .*{reason}"):
            await EngineClient.start(small_spec(model_dir="fail-load:0"), rank_module)

    run(test)
    assert not (here / "was_run").exists()


FRONT = """
import asyncio, sys
from splitrank.serving.launch.engine_client import EngineClient
from tests.support.fake_model import small_spec

async def main():
    client = await EngineClient.start(small_spec(pp_size=2, partition=(1, 1)), "tests.support.fake_rank")
    print(*client.pids.values(), flush=True)
    await client.died.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("num_stopped", [0, 1, 3])
def test_children_do_not_outlive_a_killed_front(num_stopped: int, run_dirs: Path) -> None:
    """Nor do stopped ones, and the run folder goes even if all of them were stopped."""
    environment = {**os.environ, "TMPDIR": str(run_dirs)}
    with subprocess.Popen([sys.executable, "-c", FRONT], stdout=subprocess.PIPE, env=environment) as front:
        assert front.stdout is not None
        pids = [int(pid) for pid in front.stdout.readline().split()]
        assert len(pids) == 3
        assert len(list(run_dirs.iterdir())) == 1
        for pid in pids[:num_stopped]:
            os.kill(pid, signal.SIGSTOP)
        front.kill()
    asyncio.run(until(lambda: all(is_gone(pid) for pid in pids) and not list(run_dirs.iterdir()), 5))
