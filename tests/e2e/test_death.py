"""A killed or stopped process: open requests end with an error, everything exits in time, nothing is left behind."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e.servers import Server, processes_of, run_dirs, wait_until
from tests.support import shared_memory

LONG = {"model": "demo", "prompt": "Once", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}


@contextmanager
def nothing_left(server: Server) -> Iterator[None]:
    """After the block: no process of the server, port free, no run folder, nothing new in shared memory."""
    before = shared_memory.names()
    assert len(run_dirs(server.temporary)) == 1
    assert processes_of(server.temporary)
    yield
    wait_until(lambda: not processes_of(server.temporary), "the processes to end")
    wait_until(lambda: not run_dirs(server.temporary), "the run folder to go")
    shared_memory.assert_nothing_new(before)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", server.port))
        listener.listen()


def open_streams(server: Server, number: int) -> list[Any]:
    """Streams that have begun, with far more to come."""
    streams = [iter(server.client.completions.create(stream=True, **LONG)) for _ in range(number)]
    for stream in streams:
        next(stream)
    return streams


def drain(stream: Any) -> None:
    for _ in stream:
        pass


def check_death(server: Server, victim: psutil.Process, number: signal.Signals, said: str) -> None:
    with nothing_left(server):
        streams = open_streams(server, 3)
        victim.send_signal(number)
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                drain(stream)
            assert said in caught.value.message
        assert server.wait_exit() == 1
    assert said in server.stderr
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_killed_rank(rank: int) -> None:
    with Server("--pp", 2) as server:
        check_death(
            server, server.rank(rank), signal.SIGKILL, f"rank {rank} (stage {rank}, tp 0) was killed by signal 9"
        )


@pytest.mark.full  # a stopped tensor rank below; comm/test_ranks.py has a silent stage
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank(rank: int) -> None:
    with Server("--pp", 2, "--heartbeat-timeout-s", 3) as server:
        check_death(server, server.rank(rank), signal.SIGSTOP, f"rank {rank} (stage {rank}, tp 0) has been silent")


@pytest.mark.parametrize(
    ("rank", "all_reduce"),
    [
        (0, "quick"),
        pytest.param(1, "quick", marks=pytest.mark.full),
        pytest.param(1, "torch", marks=pytest.mark.full),
        pytest.param(0, "torch", marks=pytest.mark.full),
    ],
)
def test_a_killed_tensor_rank(rank: int, all_reduce: str) -> None:
    with Server("--tp", 2, "--all-reduce", all_reduce) as server:
        check_death(
            server, server.rank(rank), signal.SIGKILL, f"rank {rank} (stage 0, tp {rank}) was killed by signal 9"
        )


def test_a_stopped_tensor_rank() -> None:
    with Server("--tp", 2, "--all-reduce", "quick", "--heartbeat-timeout-s", 3) as server:
        check_death(server, server.rank(1), signal.SIGSTOP, "rank 1 (stage 0, tp 1) has been silent")


def test_a_killed_engine() -> None:
    with Server() as server:
        (engine,) = [p for p in processes_of(server.temporary) if "splitrank.serving.engine.engine_main" in p.cmdline()]
        check_death(server, engine, signal.SIGKILL, "engine was killed by signal 9")


def test_a_rank_killed_while_idle() -> None:
    with Server("--pp", 2) as server, nothing_left(server):
        server.rank(1).kill()
        assert server.wait_exit() == 1


def test_a_killed_front_takes_its_children_along() -> None:
    with Server() as server, nothing_left(server):
        stream = open_streams(server, 1)[0]
        server.process.kill()
        assert server.wait_exit() == -signal.SIGKILL
        with pytest.raises((openai.APIError, httpx.TransportError)):
            drain(stream)
