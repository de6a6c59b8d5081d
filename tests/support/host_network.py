"""Hosts as network namespaces of this machine. Host 0 is the machine itself; a bridge links them.

Packets are dropped silently by a neighbour's address that nobody has: in one direction, or in both.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_numbers = itertools.count()  # of networks of this process
ROOT = Path(__file__).parents[2]
NOBODY = "02:00:00:00:00:99"


class HostNetwork:
    """``with HostNetwork(2) as network: ...``. ``prefix(1)`` goes before a command that is to run on host 1."""

    def __init__(self, num_hosts: int) -> None:
        number = next(_numbers)
        self._tag = f"sr{os.getpid() % 100_000}-{number}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{(os.getpid() // 50 + number) % 250}"
        self._num_hosts = num_hosts

    def address(self, host: int) -> str:
        return f"{self._subnet}.{host + 1}"

    def prefix(self, host: int) -> list[str]:
        return ["ip", "netns", "exec", self._name(host)] if host else []

    def cut_from(self, host: int) -> None:
        """What ``host`` sends is lost; it still hears the others."""
        for other in range(self._num_hosts):
            if other != host:
                device = self._device(host)
                _ip("neigh", "replace", self.address(other), "lladdr", NOBODY, "dev", device, inside=self.prefix(host))

    def cut_to(self, host: int) -> None:
        """What others send to ``host`` is lost."""
        for other in range(self._num_hosts):
            if other != host:
                device, inside = self._device(other), self.prefix(other)
                _ip("neigh", "replace", self.address(host), "lladdr", NOBODY, "dev", device, inside=inside)

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.address(0)}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for host in range(1, self._num_hosts):
                self._add(host)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    @property
    def _bridge(self) -> str:
        return f"{self._tag}b"

    def _name(self, host: int) -> str:
        return f"{self._tag}h{host}"

    def _device(self, host: int) -> str:
        return "eth0" if host else self._bridge

    def _add(self, host: int) -> None:
        name, inside = self._name(host), self.prefix(host)
        _ip("netns", "add", name)
        _ip("link", "add", f"{name}p", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", f"{name}p", "master", self._bridge, "up")
        _ip("address", "add", f"{self.address(host)}/24", "dev", "eth0", inside=inside)
        for device in ("lo", "eth0"):
            _ip("link", "set", device, "up", inside=inside)

    def _remove(self) -> None:
        for host in range(1, self._num_hosts):
            subprocess.run(["ip", "netns", "delete", self._name(host)], capture_output=True)
            subprocess.run(["ip", "link", "delete", f"{self._name(host)}p"], capture_output=True)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True)


class DelayedNetwork(HostNetwork):
    """Two hosts whose packets are carried by ``packet_relay``: each one ``delay_ms`` late, and a part of them lost."""

    def __init__(self, delay_ms: float, loss: float = 0.0) -> None:
        super().__init__(2)
        self._delay_ms, self._loss = delay_ms, loss
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._name(1))
            command = [sys.executable, "-m", "tests.support.packet_relay", self._name(1), self._bridge]
            command += [str(self._delay_ms), str(self._loss)]
            self._relay = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert self._relay.stdout is not None
            assert self._relay.stdout.readline() == "ready\n"
            for host in (0, 1):
                device, inside = self._device(host), self.prefix(host)
                _ip("address", "add", f"{self.address(host)}/24", "dev", device, inside=inside)
                # Large frames and a long queue: the cable is a program, and is to delay, not to drop.
                _ip("link", "set", device, "mtu", "16000", "txqueuelen", "10000", "up", inside=inside)
            _ip("link", "set", "lo", "up", inside=self.prefix(1))
        except BaseException:
            self._remove()
            raise
        return self

    def _remove(self) -> None:
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()
        super()._remove()


def why_not() -> str:
    """Why this machine has no network namespaces for tests; empty if it has."""
    try:
        with HostNetwork(2):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"no network namespaces here: {' '.join(said.split())}"


def _ip(*arguments: str, inside: list[str] | None = None) -> None:
    subprocess.run([*(inside or []), "ip", *arguments], check=True, capture_output=True, text=True)
