"""The store by which two ranks make a process group: over their own stream, which it leaves clean."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from splitrank.comm.channel_store import ChannelStore
from splitrank.comm.errors import CommunicationError
from tests.support.limits import ANSWER_S


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


def test_what_one_end_sets_both_can_get(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = (ChannelStore(end, ANSWER_S) for end in ends)
    one.set("unique id", bytes(range(128)))
    one.set("unread", b"")
    assert other.get("unique id") == one.get("unique id") == bytes(range(128))
    assert not other.check(["unread"])
    other.wait(["unread"])
    assert other.check(["unread", "unique id"])


def test_behind_the_end_the_stream_carries_nothing_of_the_store(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = (ChannelStore(end, ANSWER_S) for end in ends)
    one.set("never read", b"1")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(other.end)
        one.end()
        ended.result()
    one.set("a watchdog's word", b"1")
    with pytest.raises(CommunicationError, match="has not set 'anything'"):
        other.get("anything")
    ends[0].sendall(b"a header")
    assert ends[1].recv(100) == b"a header"


def test_a_peer_that_leaves_or_says_nothing_is_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    store = ChannelStore(ends[0], 0.1)
    with pytest.raises(CommunicationError, match=r"nothing came for 0\.1 s"):
        store.get("unique id")
    ends[1].close()
    with pytest.raises(CommunicationError, match="it has left"):
        store.get("unique id")


def test_a_value_that_is_too_long_is_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[1].sendall(b"\x04\x00\xff\xff\xff\x7f")
    with pytest.raises(CommunicationError, match="a value of 2,147,483,647 bytes"):
        ChannelStore(ends[0], ANSWER_S).get("unique id")
