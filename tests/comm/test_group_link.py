"""The link by process groups of two, which has NCCL between GPUs: on a CPU with gloo, the same class and protocol."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from splitrank.comm import group_link
from splitrank.comm.errors import CommunicationError
from splitrank.comm.group_link import GroupLink
from splitrank.comm.message_header import make_header
from splitrank.comm.pair_group import PairGroups
from splitrank.comm.position import mesh_position
from tests.support.comm_rank import HASH
from tests.support.device_link_rank import TIMEOUT_S
from tests.support.device_link_runs import check_mismatched_headers, in_time, run
from tests.support.limits import PROGRAM_S, SLACK_S, scaled

KIND = "nccl"
LIMIT_S = 0.3


def test_every_bit_of_messages_both_ways(tmp_path: Path) -> None:
    assert run("both_ways", tmp_path, 2, kind=KIND) == [[1500, 0], [1500, 0]]


def test_a_stage_may_be_as_many_messages_ahead_as_steps_are_in_flight(tmp_path: Path) -> None:
    assert run("ahead", tmp_path, 2, kind=KIND)[1] == [1, 1, 1]


def test_states_go_along_the_ring_and_tokens_back_to_the_first(tmp_path: Path) -> None:
    assert run("ring", tmp_path, 3, kind=KIND)[0] == [2.0] * 50


def test_a_message_that_was_not_agreed_on_is_an_error_that_names_both_sides(tmp_path: Path) -> None:
    seen = run("mismatch", tmp_path, 2, kind=KIND)[1]
    check_mismatched_headers(seen)
    in_time(seen)


def test_a_silent_stage_is_an_error_in_time_on_both_sides(tmp_path: Path) -> None:
    seen = run("silent_stage", tmp_path, 2, kind=KIND)
    own = "stage 1 waited for stage 0, step 7: nothing came for 3 s"
    assert seen[1][1::2] == [own, own]
    assert seen[0][1].endswith("has left")
    assert float(seen[1][2]) < TIMEOUT_S  # they do not wait again
    assert float(seen[0][0]) < TIMEOUT_S
    in_time(seen[1])


def test_a_stage_that_takes_nothing_is_an_error_in_time(tmp_path: Path) -> None:
    seen = run("deaf_stage", tmp_path, 2, kind=KIND)[0]
    assert seen[1].startswith("stage 0 waited for stage 1 to take step 3: ")
    in_time(seen)


def test_a_dead_stage_is_noticed_at_once(tmp_path: Path) -> None:
    [seconds, said] = run("dead_stage", tmp_path, 2, kind=KIND)[1]
    assert said in ("stage 1 waited for stage 0, step 0: it has left", "stage 1: stage 0 has left")
    assert float(seconds) < TIMEOUT_S


class StuckWork:
    """A message that NCCL never ends. Its ``wait`` returns at once, as where a GPU's stream waits."""

    def is_completed(self) -> bool:
        return False

    def wait(self) -> None: ...


class StuckGroup:
    """With a peer that has sent a header and then nothing."""

    def __init__(self) -> None:
        self.aborted = threading.Event()

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> StuckWork:
        return StuckWork()

    recv = send

    def abort(self) -> None:
        self.aborted.set()


@contextmanager
def stuck(
    monkeypatch: pytest.MonkeyPatch, limit_s: float = LIMIT_S
) -> Iterator[tuple[GroupLink, StuckGroup, socket.socket]]:
    """A first stage of two, the group to the second one, and the second one's end of the stream from it."""
    group = StuckGroup()
    monkeypatch.setattr(group_link, "make_groups", lambda *ends: PairGroups(group, group, ()))
    (previous, before), (following, behind) = socket.socketpair(), socket.socketpair()
    link = GroupLink(mesh_position(0, 2, 1), torch.device("cpu"), previous, following, 3, limit_s)
    with before, behind:
        before.sendall(make_header(0, HASH, 1, (2, 4), torch.float32))
        yield link, group, before
        link.close()


def test_a_payload_that_never_comes_is_aborted_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with stuck(monkeypatch) as (link, group, _):
        link.receive(1, (2, 4), torch.float32, 0, HASH)
        assert group.aborted.wait(scaled(LIMIT_S + SLACK_S))
        limit = rf"stage 0 waited for stage 1, step 0: no end within {LIMIT_S:g} s"
        with pytest.raises(CommunicationError, match=limit):
            link.check()


def test_when_a_neighbour_leaves_what_the_gpu_waits_for_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    with stuck(monkeypatch, limit_s=scaled(PROGRAM_S)) as (link, group, before):
        link.receive(1, (2, 4), torch.float32, 0, HASH)
        link.check()
        before.close()
        assert group.aborted.wait(scaled(SLACK_S))
        with pytest.raises(CommunicationError, match="stage 0: stage 1 has left"):
            link.check()
        with pytest.raises(CommunicationError, match="stage 0: stage 1 has left"):
            link.send((torch.ones(2, 4),), 1, HASH)


def test_states_that_nobody_takes_are_aborted_once_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before: the last tokens of an idle server wait until the next step."""
    with stuck(monkeypatch) as (link, group, _):
        for step in range(3):
            link.send((torch.ones(2, 4),), step, HASH)
        assert not link._due
        link.send((torch.ones(2, 4),), 3, HASH)
        assert group.aborted.wait(scaled(LIMIT_S + SLACK_S))
        with pytest.raises(CommunicationError, match="stage 0 waited for stage 1 to take step 3: no end within"):
            link.check()
