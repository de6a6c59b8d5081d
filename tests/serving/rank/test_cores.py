"""Ranks share the machine's cores: each thread has its own, and no core has two."""

import os

import msgspec
import pytest

from splitrank.serving.launch import resolve
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.cores import describe_cores, own_cores
from tests.support.fake_model import small_spec


@pytest.fixture(autouse=True)
def _six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which this process may not use the first two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 3, 4, 5, 6})


def spec(threads: int, pin: bool = True, num_nodes: int = 1) -> LaunchSpec:
    stages = {"pp_size": 4, "num_nodes": num_nodes}
    return msgspec.structs.replace(small_spec(), threads_per_rank=threads, pin_threads=pin, **stages)


def test_ranks_take_neighbouring_cores_in_order() -> None:
    assert [own_cores(spec(2), rank) for rank in range(3)] == [[2, 3], [4, 5], [6, 7]]
    assert [describe_cores(own_cores(spec(threads), 1)) for threads in (1, 3)] == ["core 3", "cores 5, 6, 7"]


def test_ranks_of_each_host_begin_with_its_first_core() -> None:
    assert [own_cores(spec(2, num_nodes=2), rank) for rank in range(4)] == [[2, 3], [4, 5], [2, 3], [4, 5]]


def test_nobody_is_pinned_without_cores_or_against_the_options() -> None:
    assert own_cores(spec(4), 1) == []
    assert own_cores(spec(2, pin=False), 0) == []
    assert describe_cores([]) == "threads on any core"


@pytest.mark.parametrize(
    ("options", "threads", "expected"),
    [
        ({"pp": 3}, 2, True),
        ({"pp": 3}, 1, False),  # three cores are left over: the system knows which are free
        ({"pp": 3, "pin_threads": "on"}, 1, True),
        ({"pp": 3}, 3, False),
        ({"pp": 3, "pin_threads": "off"}, 2, False),
        ({"pp": 3, "exact": "off"}, 2, False),
    ],
    ids=str,
)
def test_threads_are_pinned_where_they_fill_the_machine(
    options: dict[str, object], threads: int, expected: bool
) -> None:
    assert resolve.pins_threads(EngineConfig(**options), "cpu", threads) is expected


def test_what_cannot_be_pinned_is_refused() -> None:
    with pytest.raises(ValueError, match="9 threads of all ranks, but 6 cores"):
        resolve.pins_threads(EngineConfig(pp=3, pin_threads="on"), "cpu", 3)
    with pytest.raises(ValueError, match="exact off"):
        resolve.pins_threads(EngineConfig(pin_threads="on", exact="off"), "cpu", 1)
