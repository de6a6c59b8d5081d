"""The byte stream between stages: order, room, and a peer that leaves."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitrank.comm.errors import CommunicationError
from splitrank.comm.stage_socket import Outbox, StageListener, connect, receive_into
from tests.support.limits import ANSWER_S, scaled

MESSAGE_BYTES = 3 * 2**20  # more than a socket's buffer takes


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def message(number: int) -> list[memoryview]:
    return [memoryview(bytes([number])), memoryview(bytes([number + 100]) * MESSAGE_BYTES)]


def test_messages_that_no_buffer_takes_arrive_in_order_while_the_sender_goes_on(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    outbox = Outbox(pair[0], limit=3, timeout_s=scaled(ANSWER_S))
    for number in range(3):
        outbox.put(message(number))  # returns though nobody reads
    for number in range(3):
        buffer = memoryview(bytearray(1 + MESSAGE_BYTES))
        receive_into(pair[1], buffer, timeout_s=scaled(ANSWER_S))
        assert bytes(buffer) == b"".join(message(number))


def test_a_full_outbox_waits_for_room(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(pair[0], limit=1, timeout_s=scaled(ANSWER_S))
    outbox.put(message(0))
    seen: list[bytes] = []

    def read() -> None:
        for _ in range(2):
            buffer = memoryview(bytearray(1 + MESSAGE_BYTES))
            receive_into(pair[1], buffer, timeout_s=scaled(ANSWER_S))
            seen.append(bytes(buffer[:1]))

    reader = threading.Thread(target=read)
    reader.start()
    outbox.put(message(1))
    reader.join(scaled(ANSWER_S))
    assert seen == [b"\0", b"\1"]


def test_a_full_outbox_is_an_error_in_time(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox(pair[0], limit=1, timeout_s=0.3)
    outbox.put(message(0))
    with pytest.raises(CommunicationError, match=r"nothing was taken for 0\.3 s"):
        outbox.put(message(1))


def test_a_peer_that_left_is_noticed_by_both_sides(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(CommunicationError, match="it has left"):
        receive_into(pair[0], memoryview(bytearray(1)), timeout_s=scaled(ANSWER_S))
    with pytest.raises(CommunicationError, match="Broken pipe"):
        Outbox(pair[0], limit=1, timeout_s=scaled(ANSWER_S)).put(message(0))


def test_a_silent_peer_is_an_error_in_time(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].send(b"1")
    with pytest.raises(CommunicationError, match=r"nothing came for 0\.2 s"):
        receive_into(pair[0], memoryview(bytearray(2)), timeout_s=0.2)


def test_a_folder_with_a_long_name_and_nothing_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    listener = StageListener(folder, "link-1")
    one = connect(folder, "link-1")
    other = listener.accept(timeout_s=scaled(ANSWER_S))
    one.sendall(b"hello")
    buffer = bytearray(5)
    receive_into(other, memoryview(buffer), timeout_s=scaled(ANSWER_S))
    assert buffer == b"hello"
    assert list(folder.iterdir()) == []
    one.close()
    other.close()


def test_nobody_connects_or_nobody_listens(tmp_path: Path) -> None:
    listener = StageListener(tmp_path, "link-1")
    with pytest.raises(CommunicationError, match=r"nobody connected to link-1 within 0\.2 s"):
        listener.accept(timeout_s=0.2)
    with pytest.raises(CommunicationError, match="cannot reach link-1: No such file"):
        connect(tmp_path, "link-1")
