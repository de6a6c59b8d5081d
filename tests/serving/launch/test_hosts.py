"""Host 0 waits for the others, compares them, and says in one line what differs or who is missing. No rank starts."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from splitrank.comm.errors import CommunicationError
from splitrank.comm.handshake import connect_proven, listen, prove_as_server
from splitrank.serving.launch import hosts
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.host_channel import HostChannel
from splitrank.serving.launch.host_checks import identity_of
from splitrank.serving.launch.hosts import JOIN, Hosts, HostsError
from splitrank.serving.launch.member import MOST_MISMATCHES, MemberError, _Member
from splitrank.serving.protocol.host_messages import (
    End,
    Ended,
    Failed,
    HostIdentity,
    HostMessage,
    Join,
    Start,
)
from splitrank.serving.protocol.messages import LaunchSpec
from tests.support.fake_model import small_spec
from tests.support.front_fakes import free_port
from tests.support.limits import ANSWER_S, scaled

SECRET = b"the secret of tests"
DEMO = Path(__file__).parents[3] / "configs" / "demo"


def spec_of(node_rank: int, port: int, **changes: object) -> LaunchSpec:
    values: dict[str, object] = {
        "model_dir": str(DEMO),
        "load_format": "dummy",
        "pp_size": 3,
        "partition": (1, 1, 1),
        "num_nodes": 3,
        "node_rank": node_rank,
        "init_address": f"127.0.0.1:{port}",
        "join_timeout_s": scaled(ANSWER_S),
        "heartbeat_timeout_s": scaled(ANSWER_S),
    }
    return small_spec(**(values | changes))


class Table:
    """Host 0, which waits in a thread, and members that join by hand."""

    def __init__(self, **changes: object) -> None:
        self.port = free_port()
        self.hosts = Hosts(spec_of(0, self.port, **changes), SECRET)
        self._threads = ThreadPoolExecutor(1)
        self.gathered: Future[LaunchSpec] = self._threads.submit(self.hosts.gather)
        self._stack = ExitStack()

    def join(
        self, node_rank: int, identity: HostIdentity | None = None, encoded: bytes | None = None, **changes: object
    ) -> HostChannel:
        spec = spec_of(node_rank, self.port, **changes)
        stream = connect_proven(("127.0.0.1", self.port), SECRET, JOIN, scaled(ANSWER_S))
        channel = HostChannel(stream, scaled(ANSWER_S))
        self._stack.callback(channel.close)
        links = {node_rank: f"10.0.0.{node_rank}:1"}
        encoded = msgspec.msgpack.encode(spec) if encoded is None else encoded
        channel.send(Join(f"name-{node_rank}", node_rank, identity or identity_of(spec), encoded, links))
        return channel

    def close(self) -> None:
        self.hosts.close()
        self._stack.close()
        self._threads.shutdown()


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.close()


def next_message(channel: HostChannel) -> HostMessage:
    wait_for(lambda: not channel._messages.empty())
    message = channel.poll()
    assert message is not None
    return message


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + scaled(ANSWER_S)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_hosts_get_what_fits_the_smallest_and_keep_their_own(table: Table) -> None:
    first = table.join(1, num_pages=10, threads_per_rank=7, model_dir="/elsewhere", identity=identity_of(spec_of(1, 1)))
    second = table.join(2, max_running_requests=3)
    spec = table.gathered.result(scaled(ANSWER_S))
    table.hosts.start(spec)
    assert (spec.num_pages, spec.max_running_requests, spec.max_model_len) == (10, 3, 40)  # 10 pages of 4 tokens
    assert set(spec.links) == {0, 1, 2}
    for channel, node_rank in ((first, 1), (second, 2)):
        message = next_message(channel)
        assert isinstance(message, Start)
        told = message.spec
        assert (told.num_pages, told.links, told.node_rank) == (10, spec.links, node_rank)
        assert told.local_ranks == range(node_rank, node_rank + 1)
        assert (told.threads_per_rank, told.model_dir) == ((7, "/elsewhere") if node_rank == 1 else (1, str(DEMO)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": (1, 2, 1)}, "has partition 1,2,1, host 0 (.*) has 1,1,1"),
        ({"page_size": 8}, "has page size 8, host 0 (.*) has 4"),
        ({"dtype": "bfloat16"}, "has dtype bfloat16, host 0 (.*) has float32"),
        ({"num_nodes": 4, "pp_size": 4}, "has pp size 4, host 0 (.*) has 3"),
    ],
)
def test_options_that_differ_are_named_with_both_values(table: Table, changes: dict[str, object], said: str) -> None:
    check_difference(table, table.join(1, **changes), said)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("splitrank_version", "splitrank version"),
        ("config_hash", "config hash"),
        ("checkpoint_hash", "checkpoint hash"),
    ],
)
def test_another_program_or_checkpoint_is_named(table: Table, field: str, name: str) -> None:
    identity = msgspec.structs.replace(identity_of(spec_of(1, 1)), **{field: "other"})
    # What another version says of its options may not be readable here.
    check_difference(table, table.join(1, identity=identity, encoded=b"?"), f"has {name} other, host 0 (.*) has ")


def check_difference(table: Table, channel: HostChannel, said: str) -> None:
    with pytest.raises(HostsError, match=r"^host 1 \(name-1, 127\.0\.0\.1\) " + said):
        table.gathered.result(scaled(ANSWER_S))
    message = next_message(channel)
    assert isinstance(message, Failed)
    assert "host 1 (name-1, 127.0.0.1) has" in message.reason


def test_who_is_missing_is_said_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit passes when the others are here, however long that has taken."""
    clock = mock.Mock(monotonic=mock.Mock(return_value=0.0), sleep=time.sleep)
    monkeypatch.setattr(hosts, "time", clock)
    table = Table(join_timeout_s=1.0)
    try:
        here = table.join(2)
        with socket.create_connection(("127.0.0.1", table.port)) as stranger:
            stranger.sendall(bytes(64))
            wait_for(lambda: table.hosts._members and table.hosts._doorkeeper.num_refused)
            clock.monotonic.return_value = 1.1
            missing = (
                r"^host 1 of 3 has not joined at 127\.0\.0\.1:\d+ within 1 s; 1 connections did not prove the secret"
            )
            with pytest.raises(HostsError, match=missing):
                table.gathered.result(scaled(ANSWER_S))
        message = next_message(here)
        assert isinstance(message, Failed)
        assert "host 1 of 3 has not joined" in message.reason
    finally:
        table.close()


@pytest.mark.parametrize(
    ("node_rank", "reason"),
    [(1, r"host 1 (name-1, 127.0.0.1) has joined before"), (3, "no such host"), (0, "no such host")],
)
def test_a_second_host_of_a_number_is_refused_alone(table: Table, node_rank: int, reason: str) -> None:
    first = table.join(1)
    wait_for(lambda: table.hosts._members)
    message = next_message(table.join(node_rank))
    assert isinstance(message, Failed)
    assert message.reason.endswith(reason)
    table.join(2)
    table.gathered.result(scaled(ANSWER_S))
    assert first.lost is None


def test_a_host_that_left_may_come_again(table: Table) -> None:
    first = table.join(1)
    wait_for(lambda: table.hosts._members)
    first.close()
    wait_for(lambda: not table.hosts._members)
    table.join(1)
    table.join(2)
    assert table.gathered.result(scaled(ANSWER_S)).num_nodes == 3


def test_a_member_that_fails_or_leaves_is_the_reason(table: Table) -> None:
    first, second = table.join(1), table.join(2)
    table.gathered.result(scaled(ANSWER_S))
    assert table.hosts.find_failure() is None
    first.send(Failed("rank 1 was killed"))
    wait_for(table.hosts.find_failure)
    assert table.hosts.find_failure() == "host 1 (name-1, 127.0.0.1): rank 1 was killed"
    second.close()
    assert table.hosts.find_failure() == "host 1 (name-1, 127.0.0.1): rank 1 was killed"


def test_an_end_in_order_is_no_failure(table: Table) -> None:
    members = [table.join(1), table.join(2)]
    table.gathered.result(scaled(ANSWER_S))
    table.hosts.end()
    for member in members:
        assert isinstance(next_message(member), End)
        member.send(Ended())
        member.close()
    wait_for(lambda: table.hosts.have_ended)
    assert table.hosts.find_failure() is None


def test_a_silent_member_is_lost(table: Table) -> None:
    one, other = socket.socketpair()
    with other:
        channel = HostChannel.__new__(HostChannel)
        _pretend_tcp(channel, one)
        wait_for(lambda: channel.lost)
        assert channel.lost == "nothing came for 0.3 s"
        channel.close()


def _pretend_tcp(channel: HostChannel, stream: socket.socket) -> None:
    """A socket pair has no addresses."""

    class Stream(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return ("127.0.0.1", 1)

        getpeername = getsockname

    channel.__init__(Stream(fileno=stream.detach()), 0.3)  # type: ignore[misc]


def test_a_host_0_that_cannot_listen_for_its_stages_gives_its_port_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when descriptors are used up: of the sockets, the first two can be made."""
    made: list[socket.socket] = []

    def listen_twice(host: str, port: int = 0) -> socket.socket:
        if len(made) == 2:
            raise ValueError(f"cannot listen on {host}:{port}: Too many open files")
        made.append(listen(host, port))
        return made[-1]

    for module in ("hosts", "link_listeners"):
        monkeypatch.setattr(f"splitrank.serving.launch.{module}.listen", listen_twice)
    both_stages_are_elsewhere = {"tp_size": 2, "num_nodes": 3}
    with pytest.raises(ValueError, match="Too many open files"):
        Hosts(spec_of(0, free_port(), **both_stages_are_elsewhere), SECRET)
    assert [one.fileno() for one in made] == [-1, -1]


class Host0:
    """Host 0's port, by hand: the first ``num_broken`` handshakes break off behind the other end's proof."""

    def __init__(self, num_broken: int) -> None:
        self._listener = listen("127.0.0.1")
        self.port: int = self._listener.getsockname()[1]
        self._num_broken, self.num_came = num_broken, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return  # closed
            self.num_came += 1
            with stream, suppress(CommunicationError):
                prove_as_server(stream, SECRET if self.num_came > self._num_broken else b"another secret", JOIN, 60)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def join_by_hand(port: int) -> None:
    joining = _Member(spec_of(1, port), SECRET, "serve", mock.Mock(count=0))
    joining._join().close()
    joining._links.close()


def test_a_handshake_that_broke_off_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host 0 may have been restarted meanwhile. Only one that refuses again and again has another secret."""
    monkeypatch.setattr("splitrank.serving.launch.member.RETRY_S", 0.0)
    for num_broken in (1, 2):
        host = Host0(num_broken)
        join_by_hand(host.port)
        assert host.num_came == num_broken + 1
        host.close()
    host = Host0(99)
    with pytest.raises(MemberError, match=r"host 0 cannot be joined: .* it does not accept our secret"):
        join_by_hand(host.port)
    assert host.num_came == MOST_MISMATCHES
    host.close()


def test_python_on_another_host_than_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="node_rank 1: the engine runs on host 0; here, run a splitrank command"):
        asyncio.run(EngineClient.start(spec_of(1, 1)))
