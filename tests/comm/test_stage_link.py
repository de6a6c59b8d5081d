"""How stages are linked: by which options, and what is refused."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from splitrank.comm import stage_links
from splitrank.comm.errors import CommunicationError
from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.ring_vote import first_objection
from splitrank.comm.stage_link import StageLinkOptions, refuse_stage_link
from splitrank.comm.stage_links import Ends, StageLinks, link_stages
from splitrank.comm.stage_socket import StageListener
from tests.support.limits import ANSWER_S


@pytest.mark.parametrize(
    ("kind", "device", "tp", "devices", "num_hosts", "link", "words"),
    [
        ("auto", "cuda", 1, (0, 1), 1, "device", ""),
        ("auto", "cuda", 1, (), 1, "device", ""),
        ("auto", "cuda", 1, (0, 0), 1, "socket", "share a GPU"),
        ("auto", "cuda", 2, (0, 1, 2, 3), 1, "socket", "tp 2"),
        ("auto", "cuda", 1, (0, 0), 2, "nccl", ""),
        ("auto", "cuda", 2, (0, 1, 0, 1), 2, "socket", "tp 2"),
        ("nccl", "cuda", 1, (0, 0), 2, "nccl", ""),
        ("nccl", "cuda", 2, (0, 1, 0, 1), 2, "nccl", ""),
        ("auto", "cpu", 1, (), 2, "socket", "CPU"),
        ("device", "cuda", 1, (0, 0), 1, "device", ""),
        ("device", "cuda", 2, (0, 1, 2, 3), 1, "device", ""),
        ("nccl", "cuda", 1, (0, 1), 1, "nccl", ""),
        ("socket", "cuda", 1, (0, 1), 1, "socket", "--stage-link socket"),
        ("socket", "cuda", 1, (0, 0), 2, "socket", "--stage-link socket"),
    ],
)
def test_which_layouts_are_linked_how(
    kind: str, device: str, tp: int, devices: tuple[int, ...], num_hosts: int, link: str, words: str
) -> None:
    world_size = 2 * tp
    host_ranks = range(world_size // num_hosts)
    found, reason = StageLinkOptions(kind, 64, devices).choose(device, tp, host_ranks, world_size)
    assert found == link
    assert words in reason
    assert bool(reason) == bool(words)


def test_ranks_of_a_host_share_a_gpu_or_not() -> None:
    options = StageLinkOptions("auto", 64, (0, 1, 0, 0))
    assert [options.shares_gpus(ranks) for ranks in (range(2), range(2, 4), range(4))] == [False, True, True]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="stage_link must be one of auto, device, nccl, socket, not 'mpi'"):
        StageLinkOptions("mpi")


@pytest.mark.parametrize("kind", ["device", "nccl"])
@pytest.mark.parametrize(
    ("device", "pp", "words"), [("cpu", 2, "a CPU's stages"), ("cuda", 1, "with pp 1 there is no other stage")]
)
def test_a_link_of_gpus_is_refused_where_it_cannot_be(kind: str, device: str, pp: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"stage_link {kind}: {words}"):
        refuse_stage_link(kind, device, pp)
    refuse_stage_link("auto", device, pp)


def test_memory_is_not_shared_between_hosts() -> None:
    refuse_stage_link("device", "cuda", 2)
    refuse_stage_link("nccl", "cuda", 2, num_nodes=2)
    with pytest.raises(ValueError, match="stage_link device: stages of several hosts share no memory"):
        refuse_stage_link("device", "cuda", 2, num_nodes=2)


Ring = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def ring() -> Iterator[Ring]:
    """Streams from the stage before and to the one behind, of three stages."""
    pairs = [socket.socketpair() for _ in range(3)]
    yield [(pairs[stage - 1][1], pairs[stage][0]) for stage in range(3)]
    for pair in pairs:
        for end in pair:
            end.close()


def vote(ring: Ring, objections: list[str]) -> list[str]:
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(first_objection, *ring[stage], stage == 0, objections[stage], ANSWER_S) for stage in range(3)
        ]
        return [call.result() for call in calls]


@pytest.mark.parametrize(
    ("objections", "expected"),
    [(["", "", ""], ""), (["", "none here", "nor here"], "none here"), (["a", "", "b"], "a")],
)
def test_all_stages_hear_the_first_objection(ring: Ring, objections: list[str], expected: str) -> None:
    assert vote(ring, objections) == [expected] * 3


def test_a_stage_that_has_left_is_an_error_of_the_vote(ring: Ring) -> None:
    ring[2][1].close()
    with pytest.raises(CommunicationError, match="it has left"):
        first_objection(*ring[0], True, "", ANSWER_S)


def test_a_stage_that_nobody_reaches_leaves_the_one_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which then does not wait for it."""
    following, behind = socket.socketpair()
    monkeypatch.setattr(Mesh, "_connect", lambda *_: following)
    mesh, listener = Mesh.__new__(Mesh), StageListener(tmp_path, "link-1")
    mesh.position = mesh_position(1, 3, 1)
    with behind, pytest.raises(CommunicationError, match="nobody connected to link-1") as raised:
        mesh._link_stages(StageLinkOptions("socket"), listener, tmp_path, 0.1)
    assert raised.value.__traceback__ is not None  # which holds the socket, as a rank does that reports the error
    assert following.fileno() == -1


def link_two(kind: str, reasons: list[str], monkeypatch: pytest.MonkeyPatch) -> list[StageLinks]:
    """The links of two stages on GPUs of two hosts, of which each may have a reason against NCCL."""
    monkeypatch.setattr(stage_links, "missing_because", lambda device: reasons[device.index])
    (to_one, from_zero), (to_zero, from_one) = socket.socketpair(), socket.socketpair()
    streams = [(to_zero, to_one), (from_zero, from_one)]

    def link(stage: int) -> StageLinks:
        device, hosts = torch.device("cuda", stage), range(stage, stage + 1)
        ends = Ends(mesh_position(stage, 2, 1), device, hosts, *streams[stage], ANSWER_S)
        return link_stages(ends, StageLinkOptions(kind))

    with ThreadPoolExecutor(2) as pool:
        return [call.result() for call in [pool.submit(link, stage) for stage in range(2)]]


def test_gpus_of_hosts_without_nccl_are_linked_by_sockets_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = link_two("auto", ["", "torch was built without NCCL"], monkeypatch)
    said = "stages linked by sockets (rank 1 (stage 1, tp 0): torch was built without NCCL)"
    assert (one.report, two.report) == (said, said)
    assert one.on_device is two.on_device is None
    states = torch.arange(6.0).view(2, 3)
    one.forward.send((states,), 0, "0" * 16)
    two.feedback.send((states + 1,), 0, "0" * 16)
    assert torch.equal(two.forward.receive(1, (2, 3), torch.float32, 0, "0" * 16)[0], states)
    assert torch.equal(one.feedback.receive(1, (2, 3), torch.float32, 0, "0" * 16)[0], states + 1)
    for links in (one, two):
        links.forward.close()
        links.feedback.close()


def test_where_nccl_was_asked_for_and_cannot_be_all_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "torch was built without NCCL"
    with pytest.raises(CommunicationError, match=rf"stage_link nccl: rank 1 \(stage 1, tp 0\): {reason}"):
        link_two("nccl", ["", reason], monkeypatch)
