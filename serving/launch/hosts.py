"""Host 0's end of an engine that runs on several hosts: waits for the others, compares them, watches them, ends them.

Nobody else can come in once all have joined: the listening socket is closed, and its port becomes the engine's.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass

import msgspec

from splitrank.comm.handshake import Doorkeeper, listen
from splitrank.serving.launch.host_channel import HostChannel
from splitrank.serving.launch.host_checks import find_difference, identity_of, localised, merge
from splitrank.serving.launch.link_listeners import LinkListeners
from splitrank.serving.launch.run_secret import join_address, split_address
from splitrank.serving.protocol.host_messages import End, Ended, Failed, HostMessage, Join, Start, StopAsked
from splitrank.serving.protocol.messages import LaunchSpec

logger = logging.getLogger(__name__)

POLL_S = 0.05
PORT_LIMIT_S = 5.0  # for the port of a server that was killed a moment ago
JOIN = "join"  # the purpose of a member's connection


@dataclass
class _Member:
    """Another host, since its connection has proved itself."""

    channel: HostChannel
    join: Join | None = None
    spec: LaunchSpec | None = None
    has_ended: bool = False

    @property
    def name(self) -> str:
        assert self.join is not None
        return host_name(self.join.node_rank, self.join.host_name, self.channel.peer_address)


class HostsError(RuntimeError):
    """The hosts do not fit together, or one is missing; one line."""


class Hosts:
    """``gather``, then ``start``; then ask for ``find_failure`` often; at last ``end`` or ``fail``, and ``close``."""

    def __init__(self, spec: LaunchSpec, secret: bytes) -> None:
        """Listens. ``ValueError`` if the address is not this host's, or is taken."""
        self._spec, self.secret = spec, secret
        self.is_started = False
        self._identity = identity_of(spec)
        self._members: dict[int, _Member] = {}
        self._newcomers: list[_Member] = []
        self._arrived: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._failure: str | None = None
        self._closing = threading.Event()
        told, port = split_address(spec.init_address)
        listener = _listen_patiently(spec.bind or told, port)
        self._address = str(listener.getsockname()[0])
        self._port = port
        self._doorkeeper = Doorkeeper(listener, secret, JOIN, lambda stream, peer: self._arrived.put(stream))
        self._name = host_name(0, socket.gethostname(), self._address)
        try:
            self.links = LinkListeners(spec, self._address, told if spec.bind else self._address)
        except BaseException:
            self._doorkeeper.close()
            raise

    def gather(self) -> LaunchSpec:
        """Waits until all hosts have joined, and returns what all have agreed on. ``HostsError`` says who is missing or
        what differs, and then every host that has joined has been told."""
        deadline, others = time.monotonic() + self._spec.join_timeout_s, self._spec.num_nodes - 1
        where = join_address(self._address, self._port)
        print(f"host 0 waits at {where} for {others} more to join", file=sys.stderr, flush=True)
        try:
            while len(self._members) < others:
                self._admit()
                if self._closing.is_set():
                    raise HostsError("the start was broken off")
                if time.monotonic() > deadline:
                    raise HostsError(self._missing())
                time.sleep(POLL_S)
        except HostsError as error:
            self.fail(str(error))
            raise
        finally:
            self._doorkeeper.close()
        specs, links = [self._spec], dict(self.links.addresses)
        for _, member in sorted(self._members.items()):
            assert member.join is not None
            assert member.spec is not None
            specs.append(member.spec)
            links |= member.join.links
        spec = merge(specs, links)
        return msgspec.structs.replace(spec, engine_address=join_address(self._address, self._port))

    def start(self, spec: LaunchSpec) -> None:
        """Every member starts its ranks."""
        self.is_started = True
        for member in self._members.values():
            assert member.spec is not None
            member.channel.send(Start(localised(spec, member.spec)))

    def find_failure(self) -> str | None:
        """Why the engine cannot go on: a host has failed, has left or is silent. Asks this process to stop if a host
        was asked to."""
        for member in self._members.values():
            while (message := member.channel.poll()) is not None:
                self._on_message(member, message)
            if member.channel.lost is not None and not member.has_ended and self._failure is None:
                self._failure = f"{member.name} is lost: {member.channel.lost}"
        return self._failure

    @property
    def have_ended(self) -> bool:
        self.find_failure()
        return all(member.has_ended or member.channel.lost for member in self._members.values())

    def end(self) -> None:
        """Tells every host that the engine ends in order."""
        self._tell(End())

    def fail(self, reason: str) -> None:
        """Tells every host to end at once."""
        self._tell(Failed(f"{self._name}: {reason}"))

    def close(self) -> None:
        """Ends ``gather``, too, if it runs in another thread."""
        self._closing.set()
        self._doorkeeper.close()
        self.links.close()
        for member in (*self._members.values(), *self._newcomers):
            member.channel.close()

    def _tell(self, message: HostMessage) -> None:
        for member in (*self._members.values(), *self._newcomers):
            member.channel.send(message)

    def _on_message(self, member: _Member, message: HostMessage) -> None:
        if isinstance(message, Failed) and self._failure is None:
            self._failure = f"{member.name}: {message.reason}"
        elif isinstance(message, Ended):
            member.has_ended = True
        elif isinstance(message, StopAsked):
            os.kill(os.getpid(), signal.SIGTERM)  # as if this host had been asked: it drains, then ends all

    # ------------------------------------------------------------ joining

    def _admit(self) -> None:
        """Takes in who has come, and drops who has left again before all were here."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._newcomers.append(_Member(HostChannel(self._arrived.get_nowait(), self._spec.heartbeat_timeout_s)))
        for rank, member in list(self._members.items()):
            while (message := member.channel.poll()) is not None:
                self._on_message(member, message)
            if (reason := self._failure or member.channel.lost) is not None:
                self._failure = None
                del self._members[rank]
                member.channel.close()
                logger.warning("%s has left before all hosts were here: %s", member.name, reason)
        for newcomer in [one for one in self._newcomers if self._has_spoken(one)]:
            self._newcomers.remove(newcomer)
            if newcomer.join is not None:
                self._compare(newcomer, newcomer.join)
            else:
                logger.warning(
                    "%s knows the secret, but does not join: %s", newcomer.channel.peer_address, newcomer.channel.lost
                )

    @staticmethod
    def _has_spoken(newcomer: _Member) -> bool:
        message = newcomer.channel.poll()
        newcomer.join = message if isinstance(message, Join) else None
        return message is not None or newcomer.channel.lost is not None

    def _compare(self, newcomer: _Member, join: Join) -> None:
        rank, name = join.node_rank, newcomer.name
        if not 0 < rank < self._spec.num_nodes or rank in self._members:
            reason = f"{self._members[rank].name} has joined before" if rank in self._members else "no such host"
            newcomer.channel.send(Failed(f"{self._name}: {name} is refused: {reason}"))
            newcomer.channel.close()
            return
        self._members[rank] = newcomer
        difference = find_difference(self._name, self._identity, name, join.identity)
        if difference is None:
            newcomer.spec = msgspec.msgpack.decode(join.spec, type=LaunchSpec)
            difference = find_difference(self._name, self._spec, name, newcomer.spec)
        if difference is not None:
            raise HostsError(difference)

    def _missing(self) -> str:
        missing = [str(rank) for rank in range(1, self._spec.num_nodes) if rank not in self._members]
        refused = self._doorkeeper.num_refused
        strangers = f"; {refused} connections did not prove the secret" if refused else ""
        return (
            f"host {' and '.join(missing)} of {self._spec.num_nodes} has not joined at {self._address}:{self._port} "
            f"within {self._spec.join_timeout_s:g} s{strangers}"
        )


def host_name(rank: int, name: str, address: str) -> str:
    """A host's name in messages."""
    return f"host {rank} ({name}, {address})"


def _listen_patiently(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + PORT_LIMIT_S
    while True:
        try:
            return listen(host, port)
        except ValueError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)
