"""A server over several hosts, which are network namespaces of this machine: the same bits as on one, and an end in
time whatever host dies, hangs or is cut off."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.host_servers import HEARTBEAT_S, PORT, SECRET, HostServers, Member, hosts_options
from tests.e2e.servers import DEMO, EXIT_S, Server, run_command
from tests.e2e.test_death import drain, open_streams
from tests.support.host_network import DelayedNetwork, HostNetwork, why_not
from tests.support.limits import scaled

ASKED: dict[str, Any] = {
    "model": "demo",
    "prompt": "Natalia sold 48",
    "max_tokens": 40,
    "temperature": 0,
    "logprobs": 5,
}


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def network(_namespaces: None) -> Iterator[HostNetwork]:
    with HostNetwork(4) as network:
        yield network


def answer(server: Server) -> tuple[str, Any]:
    choice = server.client.completions.create(**ASKED).choices[0]
    return choice.text, choice.logprobs


@pytest.mark.parametrize("num_hosts", [2, pytest.param(4, marks=pytest.mark.full)])
def test_several_hosts_answer_as_one_and_end_together(network: HostNetwork, num_hosts: int, server: Server) -> None:
    with HostServers(network, num_hosts, "--dtype", "float32", "--max-model-len", 2048) as hosts:
        assert answer(hosts.server) == answer(server)
        strangers = [stranger(network, PORT) for _ in range(3)]
        assert answer(hosts.server) == answer(server)
        assert all(b"splitrank" not in heard for heard in strangers)
        hosts.members[-1].process.send_signal(signal.SIGTERM)  # as a launcher does that stops all hosts
        assert hosts.wait_exits(EXIT_S) == [0] * num_hosts


def stranger(network: HostNetwork, port: int) -> bytes:
    """What somebody hears who sends rubbish to the port."""
    with socket.create_connection((network.address(0), port), 10) as stream:
        stream.settimeout(1)
        try:
            stream.sendall(os.urandom(4096))
            return stream.recv(4096)
        except OSError:
            return b""


def kill_front(hosts: HostServers) -> None:
    hosts.members[0].process.kill()


def kill_rank(hosts: HostServers) -> None:
    [rank] = hosts.members[0].processes
    rank.kill()


def stop(hosts: HostServers) -> None:
    """All of host 1 hangs; what an operator would then end is ended at the end."""
    for process in (hosts.members[0].process, *hosts.members[0].processes):
        process.send_signal(signal.SIGSTOP)


def cut(hosts: HostServers) -> None:
    hosts.network.cut_from(1)
    hosts.network.cut_to(1)


def cut_from(hosts: HostServers) -> None:
    hosts.network.cut_from(1)


def cut_to(hosts: HostServers) -> None:
    hosts.network.cut_to(1)


FAULTS: list[tuple[Callable[[HostServers], None], str, float]] = [
    (kill_rank, "rank 1 (stage 1, tp 0) was killed by signal 9", 2),
    (cut, "nothing came for 4 s", HEARTBEAT_S + 3),
    (kill_front, "is lost: it has left", 2),
    (stop, "nothing came for 4 s", HEARTBEAT_S + 3),
    (cut_from, "nothing came for 4 s", HEARTBEAT_S + 3),
    (cut_to, "nothing came for 4 s", HEARTBEAT_S + 3),
]


@pytest.mark.parametrize(
    ("fault", "said", "noticed_s"),
    [*FAULTS[:2], *(pytest.param(*fault, marks=pytest.mark.full) for fault in FAULTS[2:])],
)
def test_a_fault_ends_all_hosts(fault: Callable[[HostServers], None], said: str, noticed_s: float) -> None:
    with HostNetwork(2) as network, HostServers(network, 2) as hosts:
        streams = open_streams(hosts.server, 3)
        began = time.monotonic()
        fault(hosts)
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                drain(stream)
        noticed = time.monotonic() - began
        assert noticed < scaled(noticed_s)
        if fault is stop:
            assert hosts.server.wait_exit() == 1
            for process in (hosts.members[0].process, *hosts.members[0].processes):
                process.send_signal(signal.SIGCONT)
        codes = hosts.wait_exits(EXIT_S - noticed_s)
        print(
            f"{fault.__name__}: {noticed:.1f} s, {caught.value.message}; ended after {time.monotonic() - began:.1f} s"
        )
        assert codes[0] == 1
        assert codes[1] == (-signal.SIGKILL if fault is kill_front else 1)
        assert said in hosts.server.stderr + hosts.members[0].stderr
        assert "Traceback" not in hosts.server.stderr + hosts.members[0].stderr


@pytest.mark.full
def test_hosts_start_again_when_host_0_was_killed(network: HostNetwork, server: Server) -> None:
    options = ("--dtype", "float32", "--max-model-len", 2048)
    with HostServers(network, 2, *options) as hosts:
        began = time.monotonic()
        hosts.server.process.kill()
        assert hosts.wait_exits(EXIT_S) == [-signal.SIGKILL, 1]
        print(f"kill host 0: ended after {time.monotonic() - began:.1f} s")
        assert "is lost: it has left" in hosts.members[0].stderr
    with HostServers(network, 2, *options) as hosts:
        assert answer(hosts.server) == answer(server)


@pytest.mark.full
def test_a_lossy_network_answers(server: Server) -> None:
    """One packet in twenty is lost: TCP sends it again, and no host is taken for dead."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("no TAP devices here (/dev/net/tun)")
    with (
        DelayedNetwork(1, 0.05) as network,
        HostServers(network, 2, "--dtype", "float32", "--max-model-len", 2048) as hosts,
    ):
        assert answer(hosts.server) == answer(server)


def other_config(folder: Path) -> tuple[object, ...]:
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    return ("--model", folder)


def other_checkpoint(folder: Path) -> tuple[object, ...]:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)  # the last byte of the last tensor, which is among the samples
        byte = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte[0] ^ 1]))
    return ("--model", folder)


DIFFERENCES: list[tuple[Callable[[Path], tuple[object, ...]], str]] = [
    (lambda folder: ("--page-size", 32), "has page size 32, host 0"),
    (other_config, "has config hash"),
    (other_checkpoint, "has checkpoint hash"),
]


@pytest.mark.parametrize(
    ("change", "said"), [DIFFERENCES[0], *(pytest.param(*one, marks=pytest.mark.full) for one in DIFFERENCES[1:])]
)
def test_hosts_that_differ_end_before_they_load(
    network: HostNetwork, change: Callable[[Path], tuple[object, ...]], said: str, temporary: Path
) -> None:
    (temporary / "secret").write_bytes(SECRET)
    folder = Path(shutil.copytree(DEMO, temporary / "demo"))
    options = hosts_options(network, 2, temporary / "secret")
    member = Member(network, 1, *options, *change(folder))
    try:
        began = time.monotonic()
        run = run_command(temporary, "serve", "--port", 0, "--node-rank", 0, *options)
        code = member.wait_exit(EXIT_S)
        print(f"{said}: both have ended after {time.monotonic() - began:.1f} s")
        assert (run.returncode, code) == (1, 1)
        for text in (run.stderr, member.stderr):
            assert f"host 1 ({socket.gethostname()}, {network.address(1)}) {said}" in text
            assert "loading" not in text
            assert "Traceback" not in text
    finally:
        member.kill()


@pytest.mark.full
def test_a_wrong_secret_ends_its_host_alone(network: HostNetwork, temporary: Path) -> None:
    (temporary / "secret").write_bytes(b"another secret of somebody")
    member = Member(network, 1, *hosts_options(network, 2, temporary / "secret"))
    try:
        with HostServers(network, 2) as hosts:
            assert member.wait_exit(EXIT_S) == 1
            assert f"{network.address(0)}:{PORT}: it does not accept our secret" in member.stderr
            assert answer(hosts.server)[0]
    finally:
        member.kill()
