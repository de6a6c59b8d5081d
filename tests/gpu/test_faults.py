"""Faults on a card: open requests end with an error that names the rank, all processes end, its memory comes back."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import torch

from tests.e2e.servers import Server, wait_until
from tests.e2e.test_death import check_death, drain, nothing_left, open_streams
from tests.support.fault_names import FAULT, RANK

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

ONE = ("--device", "cuda", "--devices", "0")
TWO_STAGES = (*ONE[:2], "--devices", "0,0", "--share-devices", "--pp", "2")
LINKED = pytest.param(
    (*ONE[:2], "--devices", "0,1", "--pp", "2", "--stage-link", "device"), marks=pytest.mark.gpu(count=2), id="linked"
)
LAST_BIT = 64 * 2**20  # what a driver may keep, and this process's own context

EATER = """
import torch
kept, size = [], 2**33
while size >= 2**20:
    try:
        kept.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
print("full", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def memory_comes_back() -> Iterator[None]:
    """What a test took of the cards is free again after it."""
    cards = range(torch.cuda.device_count())
    before = [torch.cuda.mem_get_info(card)[0] for card in cards]
    yield
    for card in cards:
        wait_until(
            lambda card=card: torch.cuda.mem_get_info(card)[0] >= before[card] - LAST_BIT,
            f"the memory of card {card} to come back",
        )


@contextmanager
def nothing_free() -> Iterator[None]:
    """Another program takes all of the card's memory that is free."""
    eater = subprocess.Popen([sys.executable, "-c", EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert eater.stdout is not None
        assert eater.stdout.readline() == "full\n"
        yield
    finally:
        eater.kill()
        eater.wait()


shared_and_linked = pytest.mark.parametrize("layout", [pytest.param(TWO_STAGES, id="shared"), LINKED])


@pytest.mark.parametrize(("layout", "number"), [(ONE, 0), (TWO_STAGES, 0), (TWO_STAGES, 1)])
@pytest.mark.parametrize(("fault", "said"), [("illegal-access", "illegal memory access"), ("assertion", "assert")])
def test_a_kernel_that_faults(
    layout: tuple[str, ...], number: int, fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAULT, f"{fault} {number}")
    monkeypatch.setenv(RANK, "tests.gpu.faulty_rank")
    with Server(*layout, module="tests.support.faulty_splitrank") as server, nothing_left(server):
        streams = open_streams(server, 3)
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                drain(stream)
            message = caught.value.message
            assert f"rank {number}" in message
            assert said in message
            assert "step" in message
        assert server.wait_exit() == 1
        assert "Traceback" not in server.stderr


@shared_and_linked
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank(layout: tuple[str, ...], number: int) -> None:
    with Server(*layout) as server:
        check_death(
            server, server.rank(number), signal.SIGKILL, f"rank {number} (stage {number}, tp 0) was killed by signal 9"
        )


def test_a_stopped_rank() -> None:
    with Server(*ONE, "--heartbeat-timeout-s", 3) as server:
        check_death(server, server.rank(0), signal.SIGSTOP, "rank 0 (stage 0, tp 0) has been silent")


@shared_and_linked
@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_stage(layout: tuple[str, ...], number: int) -> None:
    """The other stage's card waits for it: with the device link, in a kernel."""
    with Server(*layout, "--heartbeat-timeout-s", 3) as server:
        check_death(
            server, server.rank(number), signal.SIGSTOP, f"rank {number} (stage {number}, tp 0) has been silent"
        )


@pytest.mark.gpu(count=2)
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("fault", "said"), [(signal.SIGKILL, "was killed by signal 9"), (signal.SIGSTOP, "has been silent")]
)
def test_a_tensor_rank_that_ends_or_stops(number: int, fault: signal.Signals, said: str) -> None:
    """The other rank waits for it in the all-reduce of a decode graph."""
    with Server(*ONE[:2], "--devices", "0,1", "--tp", "2", "--heartbeat-timeout-s", 3) as server:
        check_death(server, server.rank(number), fault, f"rank {number} (stage 0, tp {number}) {said}")


def test_a_card_without_free_memory_serves_on() -> None:
    """All that a step needs is taken at start: another program that takes the rest later makes no step fail."""
    kinds = (
        {},
        {"logprobs": 5, "temperature": 0.7},
        {"presence_penalty": 0.5},
        {"prompt": [100 + number % 3000 for number in range(4000)], "echo": True, "logprobs": 3, "max_tokens": 1},
        {"prompt": [100 + number % 3000 for number in range(7000)]},
    )
    with Server(*ONE) as server, nothing_free():
        for kind in kinds * 3:
            body = {"model": "demo", "prompt": "Once", "max_tokens": 40, **kind}
            answer = server.client.completions.create(**body)
            assert answer.choices[0].finish_reason in ("length", "stop")
        streams = open_streams(server, 60)
        for stream in streams:
            next(stream)
