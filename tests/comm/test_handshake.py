"""Two ends prove to each other that they know a secret; whoever does not gets nothing and disturbs nobody."""

import errno
import queue
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from splitrank.comm import handshake
from splitrank.comm.errors import CommunicationError
from splitrank.comm.handshake import (
    Doorkeeper,
    check_secret,
    connect_proven,
    listen,
    prove_as_client,
    prove_as_server,
)
from splitrank.comm.position import mesh_position, previous_is_elsewhere, ranks_of_host
from splitrank.comm.stage_network import NetworkListener, StageNetwork
from splitrank.comm.stage_socket import receive_into
from tests.support.limits import ANSWER_S

LIMIT_S = 0.2
SECRET, OTHER = b"the secret of tests", b"another secret here"
CHALLENGE_BYTES, PROOF_BYTES = 8 + 32, 32 + 32


class Door:
    """A doorkeeper at a free port of this machine."""

    def __init__(self, listener: socket.socket | None = None) -> None:
        listener = listener or listen("127.0.0.1")
        self.address = listener.getsockname()[:2]
        self.proven: queue.Queue[socket.socket] = queue.Queue()
        self.keeper = Doorkeeper(listener, SECRET, "join", lambda stream, peer: self.proven.put(stream))

    def knock(self) -> socket.socket:
        stream = socket.create_connection(self.address)
        stream.settimeout(ANSWER_S)
        return stream


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.keeper.close()


def heard(stream: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    data = b""
    try:
        while piece := stream.recv(4096):
            data += piece
    except ConnectionResetError:
        pass
    return data


def test_who_knows_the_secret_comes_in(door: Door) -> None:
    stream = connect_proven(door.address, SECRET, "join", ANSWER_S)
    other = door.proven.get(timeout=ANSWER_S)
    stream.sendall(b"hello")
    buffer = bytearray(5)
    receive_into(other, memoryview(buffer), ANSWER_S)
    assert buffer == b"hello"
    stream.close()
    other.close()


@pytest.mark.parametrize(("secret", "purpose"), [(OTHER, "join"), (SECRET, "link-1")])
def test_another_secret_or_purpose_is_refused(door: Door, secret: bytes, purpose: str) -> None:
    with pytest.raises(CommunicationError, match=r"127\.0\.0\.1:\d+: it does not accept our secret"):
        connect_proven(door.address, secret, purpose, ANSWER_S)
    assert door.proven.empty()
    assert door.keeper.num_refused == 1


def test_a_stranger_gets_a_challenge_and_nothing_else(door: Door) -> None:
    with door.knock() as stream:
        stream.sendall(bytes(PROOF_BYTES))
        assert len(heard(stream)) == CHALLENGE_BYTES
    assert door.proven.empty()


def test_a_recorded_proof_is_worth_nothing(door: Door) -> None:
    """A proof answers one challenge."""
    recorded = bytearray()
    one, other = socket.socketpair()
    with one, other:
        thread = threading.Thread(target=prove_as_server, args=(one, SECRET, "join"))
        thread.start()
        challenge = bytearray(CHALLENGE_BYTES)
        receive_into(other, memoryview(challenge), ANSWER_S)
        inner, outer = socket.socketpair()  # the real client between them
        with inner, outer:
            client = threading.Thread(target=prove_as_client, args=(inner, SECRET, "join", ANSWER_S))
            client.start()
            outer.sendall(challenge)
            recorded += bytes(PROOF_BYTES)
            receive_into(outer, memoryview(recorded), ANSWER_S)
            other.setblocking(True)
            other.sendall(recorded)
            thread.join()
            answer = bytearray(32)
            receive_into(other, memoryview(answer), ANSWER_S)
            outer.setblocking(True)
            outer.sendall(answer)
            client.join()
    with door.knock() as stream:
        stream.sendall(recorded)
        assert len(heard(stream)) == CHALLENGE_BYTES
    assert door.proven.empty()


def test_a_listener_that_does_not_know_the_secret_is_found_out() -> None:
    one, other = socket.socketpair()
    with one, other:
        other.sendall(b"splitrh1" + bytes(32) + bytes(32))  # a challenge, and a guess of the proof
        with pytest.raises(CommunicationError, match="it does not know our secret"):
            prove_as_client(one, SECRET, "join", ANSWER_S)


def test_another_protocol_is_told_apart() -> None:
    one, other = socket.socketpair()
    with one, other:
        other.sendall(b"HTTP/1.1 400 Bad Request\r\n" + bytes(32))
        with pytest.raises(CommunicationError, match="it speaks another protocol"):
            prove_as_client(one, SECRET, "join", ANSWER_S)


def test_strangers_who_say_nothing_keep_nobody_out(door: Door) -> None:
    strangers = [door.knock() for _ in range(20)]
    connect_proven(door.address, SECRET, "join", ANSWER_S).close()
    door.proven.get(timeout=ANSWER_S).close()
    for stranger in strangers:
        stranger.close()


class FullDoor:
    """All places of a door are taken by strangers of one address, who say nothing."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.strangers = [door.knock() for _ in range(handshake._MOST_AT_ONCE)]
        for stranger in self.strangers:  # each has a place
            receive_into(stranger, memoryview(bytearray(CHALLENGE_BYTES)), ANSWER_S)

    def come(self, address: str) -> None:
        """One who knows the secret, from ``address``."""
        with socket.create_connection(self._door.address, ANSWER_S, (address, 0)) as stream:
            prove_as_client(stream, SECRET, "join", ANSWER_S)
        self._door.proven.get(timeout=ANSWER_S).close()

    def num_gone(self) -> int:
        return sum(bool(select.select([stranger], [], [], 0)[0]) for stranger in self.strangers)


@pytest.fixture
def full_door(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDoor]:
    monkeypatch.setattr(handshake, "_MOST_AT_ONCE", 8)
    monkeypatch.setattr(handshake, "_ENOUGH_S", float("inf"))
    full = FullDoor(door)
    yield full
    for stranger in full.strangers:
        stranger.close()


def test_strangers_of_one_address_keep_out_no_other_address(full_door: FullDoor) -> None:
    full_door.come("127.0.0.2")
    assert full_door.num_gone() == 1
    assert full_door.strangers[0].recv(1) == b""


def test_strangers_keep_out_their_own_address_for_a_moment(
    full_door: FullDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommunicationError, match="it has left"):
        full_door.come("127.0.0.1")
    assert full_door.num_gone() == 0
    monkeypatch.setattr(handshake, "_ENOUGH_S", 0.0)
    full_door.come("127.0.0.1")
    assert full_door.num_gone() == 1


def test_a_connection_that_cannot_be_accepted_closes_no_door() -> None:
    """As when descriptors are used up for a moment, or when it was reset before it was taken."""
    failures = [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()]

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise failures.pop()
            return super().accept()

    made = Door(Listener(fileno=listen("127.0.0.1").detach()))
    connect_proven(made.address, SECRET, "join", ANSWER_S).close()
    made.proven.get(timeout=ANSWER_S).close()
    made.keeper.close()


def test_a_stranger_has_the_limit_for_all_its_bytes() -> None:
    """A byte now and then, each within the limit, keeps no thread: without a limit in all they took six times as long
    here, and a stranger who counts could hold a place for minutes."""
    one, other = socket.socketpair()
    with one, other:
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(LIMIT_S / 10):
                other.send(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(CommunicationError, match=rf"not all came within {LIMIT_S:g} s"):
                prove_as_server(one, SECRET, "join", LIMIT_S)
        finally:
            ended.set()
            thread.join()


def test_a_closed_door_takes_nobody() -> None:
    door = Door()
    door.keeper.close()
    with pytest.raises(CommunicationError, match=r"cannot reach 127\.0\.0\.1:\d+: "):
        connect_proven(door.address, SECRET, "join", ANSWER_S)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="the hosts' secret has 15 bytes, fewer than 16"):
        check_secret(b"x" * 15)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        listen("192.0.2.1")


def test_stages_of_two_hosts_are_linked_past_a_stranger() -> None:
    """Rank 0 sends to rank 1 of another host: the connection is measured, then carries what stages send."""
    listener = listen("127.0.0.1")
    address = listener.getsockname()[:2]
    receiving = StageNetwork(1, {1: address}, SECRET, listener.detach())
    link = NetworkListener(receiving, 1, ANSWER_S)
    with socket.create_connection(address) as stranger:
        stranger.sendall(bytes(PROOF_BYTES))
        stream, speed = StageNetwork(1, {1: address}, SECRET).connect(1, ANSWER_S)
        previous = link.accept(ANSWER_S)
    assert speed.round_trip_s > 0
    assert speed.bytes_per_s > 0
    with stream, previous:
        stream.setblocking(True)
        stream.sendall(b"states")
        buffer = bytearray(6)
        receive_into(previous, memoryview(buffer), ANSWER_S)
        assert buffer == b"states"


def test_a_stage_that_nobody_reaches_says_so() -> None:
    listener = listen("127.0.0.1")
    link = NetworkListener(StageNetwork(1, {}, SECRET, listener.detach()), 1, ANSWER_S)
    with pytest.raises(CommunicationError, match=r"nobody connected to link-1 within 0\.2 s"):
        link.accept(0.2)


def test_ranks_of_a_host() -> None:
    assert [ranks_of_host(rank, 2) for rank in (1, 2, 5)] == [range(2), range(2, 4), range(4, 6)]


@pytest.mark.parametrize(
    ("pp", "tp", "per_host", "elsewhere"),
    [(2, 1, 1, [0, 1]), (4, 1, 2, [0, 2]), (2, 2, 2, [0, 1, 2, 3]), (2, 2, 4, [])],
)
def test_ranks_whose_stage_before_is_on_another_host(pp: int, tp: int, per_host: int, elsewhere: list[int]) -> None:
    positions = [mesh_position(rank, pp, tp) for rank in range(pp * tp)]
    assert [position.rank for position in positions if previous_is_elsewhere(position, per_host)] == elsewhere
    assert all(positions[position.next_rank].previous_rank == position.rank for position in positions)
