"""Cases in which nothing has died: a process is only slow or stopped for a while, or the server is asked to stop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil  # type: ignore[import-untyped]
from case import Case, demand, wait_for
from client import LONG, Client, demand_errors, demand_finished, join_all, streaming
from deaths import PHASES, reach
from scene import END_S, Scene
from server import START_S, Server

SLOW_FOR_S = 8.0  # several times --heartbeat-timeout-s
STOPPED_S, RUNNING_S = 1.5, 0.1
STOPPED_FRONT_S = 5.0
FINISH_S = 120.0
SHORT = {**LONG, "max_tokens": 150}
DRAIN_S = 4


def cases() -> Iterator[Case]:
    yield Case("slow", "middle rank of pp=3 runs a tenth of the time", _slow(("--pp", 3), "rank 1"))
    yield Case("slow", "rank 1 of tp=2 runs a tenth of the time", _slow(("--tp", 2), "rank 1"))
    yield Case("slow", "engine runs a tenth of the time", _slow(("--pp", 2), "engine"))
    for phase in PHASES[1:]:
        yield Case("slow", f"front stopped for {STOPPED_FRONT_S:g} s, {phase}", _stopped_front(phase))
    yield Case("asked to stop", "SIGTERM, decode", drained)
    yield Case("asked to stop", "SIGTERM, loading", _asked_at_start("loading"))
    yield Case("asked to stop", "SIGTERM, starting", _asked_at_start("starting"))
    yield Case("asked to stop", "SIGTERM, idle", _asked_at_start("idle"))
    yield Case("asked to stop", "SIGTERM twice, decode", asked_twice)
    yield Case("asked to stop", "SIGTERM, a stream longer than --drain-timeout-s", drained_in_vain)
    yield Case("asked to stop", "SIGTERM, then a rank is killed", killed_while_draining)


# ------------------------------------------------------------------ slow


def _slow(layout: tuple[object, ...], role: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        server = Server(scene, *layout)
        server.wait_ready()
        text = alone(server, SHORT)
        clients = streaming(server, 3, SHORT)
        with slowed(server.get(role)):
            time.sleep(SLOW_FOR_S)
            demand(server.process.poll() is None, f"the server has ended: {server.last_words}")
            demand(server.ask("/ready")[0] == 200, "the server is not ready")
        demand_finished(clients, FINISH_S)
        demand(all(client.text == text for client in clients), "an answer differs from the one of before")
        server.wait_idle()
        server.stop()
        return f"not declared dead; {len(clients)} of {len(clients)} answers as without it"

    return play


def alone(server: Server, body: dict[str, Any]) -> str:
    """The answer of a server that does nothing else."""
    client = Client(server, body)
    demand_finished([client], FINISH_S)
    return client.text


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """Meanwhile the process is stopped most of the time, always for less than a heartbeat's limit."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            process.send_signal(signal.SIGSTOP)
            over.wait(STOPPED_S)
            process.send_signal(signal.SIGCONT)
            over.wait(RUNNING_S)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stopped_front(phase: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        server = Server(scene, "--pp", 3)
        clients = reach(server, "front", phase, SHORT)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_FRONT_S)
        server.process.send_signal(signal.SIGCONT)
        server.wait_ready()
        demand_finished(clients, FINISH_S)
        demand(server.ask("/v1/completions", {"prompt": "Once", "max_tokens": 4})[0] == 200, "no answer afterwards")
        server.wait_idle()
        server.stop()
        return f"goes on; {len(clients)} of {len(clients)} answers whole" if clients else "goes on"

    return play


# ------------------------------------------------------------------ asked to stop


def drained(scene: Scene) -> str:
    server = Server(scene, "--pp", 3, "--drain-timeout-s", FINISH_S)
    server.wait_ready()
    text = alone(server, SHORT)
    clients = streaming(server, 3, SHORT)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.ask("/ready")[0] == 503, "/ready to be 503", END_S)
    demand(any(client.is_alive() for client in clients), "the streams ended before /ready was 503")
    demand(server.ask("/health")[0] == 200, "/health is not 200 while the server drains")
    late = Client(server, SHORT)
    demand_errors([late], began, "503 engine_draining", END_S)
    demand_finished(clients, FINISH_S)
    demand(all(client.text == text for client in clients), "an answer differs from the one of before")
    code = server.wait_exit()
    demand(code == 0, f"exit code {code}: {server.last_words}")
    return "/ready 503 at once, new requests 503, open streams whole; exit 0"


def _asked_at_start(phase: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        server = Server(scene, "--pp", 3)
        reach(server, "rank 0", phase)
        server.stop()
        return "exit 0"

    return play


def asked_twice(scene: Scene) -> str:
    server = Server(scene, "--pp", 3, "--drain-timeout-s", FINISH_S)
    server.wait_ready()
    clients = streaming(server, 3)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in server.stderr, "the draining", END_S)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    scene.times["told_s"] = demand_errors(clients, began, "shutting down", END_S)
    code = server.wait_exit()
    demand(code == 0, f"exit code {code}: {server.last_words}")
    return "3 of 3 clients get an error at once; exit 0"


def drained_in_vain(scene: Scene) -> str:
    server = Server(scene, "--pp", 3, "--drain-timeout-s", DRAIN_S)
    server.wait_ready()
    clients = streaming(server, 3)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    told = demand_errors(clients, began, "shutting down", END_S)
    demand(told >= DRAIN_S, f"the streams got {told:.1f} s instead of {DRAIN_S}")
    scene.times["told_s"] = told
    code = server.wait_exit()
    demand(code == 0, f"exit code {code}: {server.last_words}")
    return f"3 of 3 clients get an error after {DRAIN_S} s; exit 0"


def killed_while_draining(scene: Scene) -> str:
    server = Server(scene, "--pp", 3, "--drain-timeout-s", FINISH_S)
    server.wait_ready()
    clients = streaming(server, 3)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in server.stderr, "the draining", START_S)
    began = time.monotonic()
    server.get("rank 1").kill()
    join_all(clients, END_S)
    scene.times["told_s"] = demand_errors(clients, began, "was killed by signal 9", END_S)
    code = server.wait_exit()
    demand(code == 1, f"exit code {code}: {server.last_words}")
    return "3 of 3 clients get an error that names it; exit 1"
