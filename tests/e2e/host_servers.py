"""Servers over several hosts: host 0 is a ``Server``, the others are the same command inside a network namespace."""

import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.e2e.servers import ROOT, Server, environment, processes_of, splitrank_command, temporary_folder, wait_until
from tests.support.host_network import HostNetwork
from tests.support.limits import scaled

SECRET = b"a secret of tests"
PORT = 29577  # of host 0's address on the test's own bridge
HEARTBEAT_S = 4


class Member:
    """``splitrank serve`` on a host that is not the first."""

    def __init__(self, network: HostNetwork, host: int, *arguments: object) -> None:
        self._folder = temporary_folder()
        self.temporary = self._folder.__enter__()
        command = splitrank_command("serve", *arguments, "--node-rank", host)
        with open(self.temporary / "stderr", "w") as stderr:
            self.process = subprocess.Popen(
                [*network.prefix(host), *command], cwd=ROOT, env=environment(self.temporary), stderr=stderr
            )

    @property
    def stderr(self) -> str:
        return (self.temporary / "stderr").read_text()

    @property
    def processes(self) -> list[psutil.Process]:
        """The ranks."""
        return processes_of(self.temporary)

    def wait_exit(self, limit_s: float) -> int:
        return self.process.wait(timeout=scaled(limit_s))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.__exit__(None, None, None)


class HostServers:
    """``with HostServers(network, 2, "--dtype", "float32") as hosts: ...``: ``server`` is host 0, ``members`` the
    others."""

    def __init__(self, network: HostNetwork, num_hosts: int, *arguments: object) -> None:
        self.network, self._stack = network, ExitStack()
        folder = self._stack.enter_context(temporary_folder())
        secret = folder / "secret"
        secret.write_bytes(SECRET)
        options = hosts_options(network, num_hosts, secret, *arguments)
        try:
            self.members = [self._member(host, *options) for host in range(1, num_hosts)]
            self.server = self._stack.enter_context(Server("--node-rank", 0, *options))
        except BaseException:
            for member in getattr(self, "members", []):
                print(member.stderr)
            self._stack.close()
            raise

    def _member(self, host: int, *options: object) -> Member:
        member = Member(self.network, host, "--threads-per-rank", 1, *options)
        self._stack.callback(member.kill)
        return member

    def wait_exits(self, limit_s: float) -> list[int]:
        """The exit codes of all hosts' commands, host 0's first; nothing of them is left."""
        codes = [self.server.wait_exit(limit_s), *(member.wait_exit(limit_s) for member in self.members)]
        for folder in (self.server.temporary, *(member.temporary for member in self.members)):
            wait_until(lambda folder=folder: not processes_of(folder), "the processes to end")
            wait_until(lambda folder=folder: not list(folder.glob("splitrank-*")), "the run folder to go")
        return codes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            for member in self.members:
                print(member.stderr)
        self._stack.close()


def hosts_options(network: HostNetwork, num_hosts: int, secret: Path, *arguments: object) -> tuple[object, ...]:
    address = f"{network.address(0)}:{PORT}"
    hosts = ("--nnodes", num_hosts, "--dist-init-addr", address, "--secret-file", secret, "--join-timeout", 60)
    return (
        *hosts,
        "--heartbeat-timeout",
        HEARTBEAT_S,
        *([] if "--pp" in arguments else ["--pp", num_hosts]),
        *arguments,
    )
