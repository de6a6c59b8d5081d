"""The part of every host but the first: joins host 0, runs ranks for its engine, and ends with it."""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Sequence

import msgspec

from splitrank.comm.errors import CommunicationError, SecretMismatch
from splitrank.comm.handshake import connect_proven
from splitrank.serving.launch.engine_client import CLOSE_LIMIT_S
from splitrank.serving.launch.host_channel import HostChannel
from splitrank.serving.launch.host_checks import identity_of
from splitrank.serving.launch.hosts import JOIN, POLL_S
from splitrank.serving.launch.launcher import make_run_dir, remove_run_dir, spawn_all
from splitrank.serving.launch.link_listeners import LinkListeners
from splitrank.serving.launch.processes import Children
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.launch.run_secret import join_address, split_address
from splitrank.serving.options.config import EngineConfig, hosts_secret
from splitrank.serving.protocol.host_messages import End, Ended, Failed, Join, Start, StopAsked
from splitrank.serving.protocol.messages import LaunchSpec

RETRY_S = 0.5
MOST_MISMATCHES = 3  # one alone may be of a host 0 that was stopped, restarted or overrun during the handshake


class MemberError(RuntimeError):
    """This host cannot go on; one line."""


def run_member(
    configs: Sequence[EngineConfig], command: str, rank_module: str = "splitrank.serving.rank.rank_main"
) -> int:
    """Runs this host's ranks for each engine of host 0's command, one after the other. Returns the exit code."""
    code = 0
    stop = _StopSignals()
    for config in configs:
        try:
            _Member(resolve_launch(config), hosts_secret(config.secret_file), command, stop).run(rank_module)
        except (MemberError, CommunicationError, ValueError) as error:
            print(f"splitrank {command}: {error}", file=sys.stderr, flush=True)
            code = 1
        if stop.count:
            break
    return code


class _StopSignals:
    """SIGTERM and SIGINT: the first one asks host 0 to stop, the second one ends this host at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, *_: object) -> None:
        self.count += 1


class _Member:
    """One engine."""

    def __init__(self, spec: LaunchSpec, secret: bytes, command: str, stop: _StopSignals) -> None:
        self._spec, self._secret, self._command, self._stop = spec, secret, command, stop
        self._children = Children()
        self._run_dir = ""
        self._is_ending = self._has_asked = False

    def run(self, rank_module: str) -> None:
        """Until host 0 ends the engine. Raises ``MemberError`` if it ends otherwise; then host 0 has been told."""
        self._channel = self._join()
        try:
            while not self._turn(rank_module):
                time.sleep(POLL_S)
        except (MemberError, ValueError, OSError) as error:
            self._channel.send(Failed(" ".join(str(error).split())))
            self._children.signal(signal.SIGKILL)
            raise
        finally:
            self._end()

    def _join(self) -> HostChannel:
        """Connects to host 0, which may not have started yet, and says what this host has found."""
        address, deadline = split_address(self._spec.init_address), time.monotonic() + self._spec.join_timeout_s
        self._say(f"host {self._spec.node_rank} of {self._spec.num_nodes} joins host 0 at {self._spec.init_address}")
        num_mismatches = 0
        while True:
            try:
                stream = connect_proven(address, self._secret, JOIN, self._spec.heartbeat_timeout_s)
                break
            except CommunicationError as error:
                num_mismatches += isinstance(error, SecretMismatch)
                if num_mismatches == MOST_MISMATCHES or time.monotonic() > deadline or self._stop.count:
                    raise MemberError(f"host 0 cannot be joined: {error}") from None
            time.sleep(RETRY_S)
        channel = HostChannel(stream, self._spec.heartbeat_timeout_s)
        own = self._spec.bind or channel.own_address
        self._links = LinkListeners(self._spec, own, channel.own_address if own in ("0.0.0.0", "::") else own)
        self._spec = msgspec.structs.replace(self._spec, engine_address=join_address(channel.peer_address, address[1]))
        encoded, links = msgspec.msgpack.encode(self._spec), self._links.addresses
        channel.send(Join(socket.gethostname(), self._spec.node_rank, identity_of(self._spec), encoded, links))
        return channel

    def _turn(self, rank_module: str) -> bool:
        """Whether all is over, in order."""
        while (message := self._channel.poll()) is not None:
            if isinstance(message, Start):
                self._start(message.spec, rank_module)
            elif isinstance(message, Failed):
                raise MemberError(message.reason)
            elif isinstance(message, End):
                self._is_ending = True
        if self._is_ending:
            return True
        self._check_children()
        if self._channel.lost is not None:
            raise MemberError(f"host 0 at {self._spec.init_address} is lost: {self._channel.lost}")
        if self._stop.count > 1:
            raise MemberError("asked to stop at once")
        if self._stop.count and not self._has_asked:
            self._has_asked = True
            self._channel.send(StopAsked())
        return False

    def _start(self, spec: LaunchSpec, rank_module: str) -> None:
        spec = make_run_dir(spec, self._secret)
        self._run_dir = spec.run_dir
        spawn_all(spec, rank_module, self._children, self._links)
        names = ", ".join(self._children.pids)
        self._say(f"host {spec.node_rank} of {spec.num_nodes} runs {names}; host 0 has the front")

    def _check_children(self) -> None:
        """A rank that ends with 0 was told so by the engine, and host 0's ``End`` is on its way."""
        gone = self._children.first_exit()
        if gone is not None and gone.popen.poll() != 0:
            raise MemberError(str(gone.describe_exit()))

    def _end(self) -> None:
        """Reaps the ranks, which have been told by the engine, and tells host 0."""
        left = asyncio.run(self._children.end(CLOSE_LIMIT_S if self._is_ending else 0.0))
        self._links.close()
        if self._run_dir:
            remove_run_dir(self._run_dir)
        if self._is_ending:
            self._channel.send(Ended())
        self._channel.close()
        if left:
            raise MemberError(f"{', '.join(left)} outlived SIGKILL")

    def _say(self, line: str) -> None:
        print(f"splitrank {self._command}: {line}", file=sys.stderr, flush=True)
