"""Cases in which a process is killed, or stopped for ever, in every phase of a server's life."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from case import Case, demand, wait_for
from client import LONG, Client, demand_errors, join_all, long_prompt, streaming
from scene import END_S, Scene
from server import HEARTBEAT_S, START_S, Server

from splitrank.comm.position import MeshPosition, mesh_position

NUM_STREAMS = 3
LONG_PROMPT = 7900  # tokens; the demo's context is 8,192
START_LIMIT_S = 12  # --load-timeout-s of the cases in which a process is stopped before it has said a word
NOTICED_S = 2 * HEARTBEAT_S + 10.0  # for clients to be told, on a busy machine
PIPELINE = ("--pp", 3)
PHASES = ("starting", "loading", "idle", "prefill", "decode")
VICTIMS = {"first rank": "rank 0", "middle rank": "rank 1", "last rank": "rank 2", "engine": "engine", "front": "front"}
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def cases() -> Iterator[Case]:
    for title in SIGNALS:
        for victim, role in VICTIMS.items():
            for phase in PHASES:
                if (title, role) != ("stopped", "front"):  # a stopped front is not dead: interruptions.py
                    yield Case(title, f"{victim}, {phase}", _death(PIPELINE, title, role, phase))
    for title in SIGNALS:
        for all_reduce in ("quick", "torch"):
            for rank in (0, 1):
                layout = ("--tp", 2, "--all-reduce", all_reduce)
                name = f"rank {rank} of tp=2 in a {all_reduce} all-reduce"
                yield Case(title, name, _death(layout, title, f"rank {rank}", "decode"))
    yield Case("killed", "stopped front", kill_a_stopped_front)


def _death(layout: tuple[object, ...], title: str, role: str, phase: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        server = Server(scene, *layout, *_start_limit(phase))
        clients = reach(server, role, phase)
        began = time.monotonic()
        server.get(role).send_signal(SIGNALS[title])
        if role == "front":
            return _front_is_gone(server, clients)
        said = _said(layout, title, role, phase)
        told = demand_errors(clients, began, said, NOTICED_S)
        if clients:
            scene.times["told_s"] = told
        code = server.wait_exit(END_S + (START_LIMIT_S if phase == "starting" else 0))
        demand(code == 1, f"exit code {code}: {server.last_words}")
        demand(said in server.stderr, f"the log does not name the victim: {server.last_words}")
        if phase in ("starting", "loading"):
            return "one line names it; exit 1"
        return f"{len(clients)} of {len(clients)} clients get an error that names it; exit 1" if clients else "exit 1"

    return play


def _start_limit(phase: str) -> tuple[object, ...]:
    return ("--load-timeout-s", START_LIMIT_S) if phase == "starting" else ()


def reach(server: Server, role: str, phase: str, body: dict[str, Any] = LONG) -> list[Client]:
    """Brings the server into the phase; its open clients, in decode with streams of ``body``."""
    if phase == "starting":
        server.get("rank 0" if role == "front" else role)
        return []
    if phase == "loading":
        server.wait_loading(role)
        status, _ = server.ask("/ready")
        demand(status in (503, 200), f"/ready answers {status} while the server loads")
        return []
    server.wait_ready()
    if phase == "idle":
        return []
    return streaming(server, NUM_STREAMS, body) if phase == "decode" else in_prefill(server)


def in_prefill(server: Server) -> list[Client]:
    """Clients whose prompts the ranks compute now."""
    rank = server.get("rank 0")
    before = rank.cpu_times().user
    clients = [Client(server, long_prompt(LONG_PROMPT, seed)) for seed in range(NUM_STREAMS)]
    wait_for(lambda: rank.cpu_times().user > before + 0.1, "rank 0 to compute", START_S)
    demand(not any(client.num_events for client in clients), "the prompts were computed too soon for this case")
    return clients


def _said(layout: tuple[object, ...], title: str, role: str, phase: str) -> str:
    """What clients and log are told."""
    name = "engine" if role == "engine" else str(_position(layout, int(role.split()[1])))
    if title == "killed":
        return f"{name} was killed by signal 9"
    if phase == "starting":
        late = f"not ready after {START_LIMIT_S} s: {name}"
        return "engine process not ready after" if role == "engine" else late
    return f"{'engine process' if role == 'engine' else name} has been silent"


def _position(layout: tuple[object, ...], rank: int) -> MeshPosition:
    return mesh_position(rank, 3, 1) if layout == PIPELINE else mesh_position(rank, 1, 2)


def _front_is_gone(server: Server, clients: list[Client]) -> str:
    """Nobody is left who could send an error: connections end."""
    began = time.monotonic()
    code = server.wait_exit()
    demand(code == -signal.SIGKILL, f"exit code {code}")
    join_all(clients, END_S)
    for client in clients:
        demand(client.end == "cut", f"a client saw {client.end} {client.detail}")
    if clients:
        server.scene.times["told_s"] = max(client.ended_at for client in clients) - began
    return f"{len(clients)} of {len(clients)} connections end" if clients else "its children end"


def kill_a_stopped_front(scene: Scene) -> str:
    server = Server(scene, *PIPELINE)
    server.wait_ready()
    clients = streaming(server, NUM_STREAMS)
    server.process.send_signal(signal.SIGSTOP)
    server.process.send_signal(signal.SIGKILL)
    return _front_is_gone(server, clients)
