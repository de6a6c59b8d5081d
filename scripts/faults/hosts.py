"""Cases of two hosts, which are two addresses of this machine: in decode, a rank of host 1 or its command dies, or is
stopped for ever."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil  # type: ignore[import-untyped]
from case import Case, CaseFailed, demand
from client import demand_errors
from deaths import NOTICED_S, NUM_STREAMS, SIGNALS, reach
from scene import END_S, ROOT, Scene
from server import COMMON, HEARTBEAT_S, Server

RANK = "rank 1 (stage 1, tp 0)"
SAID = {
    ("killed", "rank"): f"{RANK} was killed by signal 9",
    ("stopped", "rank"): f"{RANK} has been silent",
    ("killed", "command"): "is lost: it has left",
    ("stopped", "command"): f"is lost: nothing came for {HEARTBEAT_S} s",
}


def cases() -> Iterator[Case]:
    for title, victim in SAID:
        yield Case(title, f"{victim} of host 1, decode", _death(title, victim))


def _death(title: str, victim: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        server, member = _start(scene)
        clients = reach(server, "rank 1", "decode")
        process = server.get("rank 1") if victim == "rank" else psutil.Process(member.pid)
        began = time.monotonic()
        process.send_signal(SIGNALS[title])
        scene.times["told_s"] = demand_errors(clients, began, SAID[title, victim], NOTICED_S)
        codes = server.wait_exit(), _wait_exit(member, title == "stopped" and victim == "command")
        expected = 1, (-signal.SIGKILL if (title, victim) == ("killed", "command") else 1)
        demand(codes == expected, f"exit codes {codes}: {server.last_words}")
        return f"{NUM_STREAMS} of {NUM_STREAMS} clients get an error that names it; both hosts end"

    return play


def _start(scene: Scene) -> tuple[Server, "subprocess.Popen[bytes]"]:
    """Host 0, which is not ready yet, and the command of host 1."""
    secret = scene.folder / "secret"
    secret.write_text("a secret of the fault matrix")
    address = f"127.0.0.1:{scene.free_port()}"
    hosts = ("--pp", 2, "--nnodes", 2, "--dist-init-addr", address, "--secret-file", secret, "--join-timeout", 60)
    command = scene.command("serve", *COMMON, *hosts, "--node-rank", 1, "--bind", "127.0.0.2")
    with open(scene.folder / "stderr-1", "w") as stderr:
        member = subprocess.Popen(command, cwd=ROOT, env=scene.environment, stderr=stderr)
    return Server(scene, *hosts, "--node-rank", 0), member


def _wait_exit(member: "subprocess.Popen[bytes]", is_stopped: bool) -> int:
    """Its exit code; one that is stopped goes on first, and finds host 0 lost."""
    if is_stopped:
        member.send_signal(signal.SIGCONT)
    try:
        return member.wait(END_S)
    except subprocess.TimeoutExpired:
        raise CaseFailed(f"host 1 runs {END_S:g} s later") from None
