"""A server that is killed and started again on its port, many times."""

import signal
from collections.abc import Iterator

from case import Case, demand
from client import LONG, streaming
from interruptions import alone
from scene import Scene
from server import Server

ROLES = ("front", "rank 0", "engine")
SHORT = {**LONG, "max_tokens": 20}


def cases(number: int) -> Iterator[Case]:
    yield Case("cycles", f"{number} times killed in its streams and started again", lambda scene: cycles(scene, number))


def cycles(scene: Scene, number: int) -> str:
    """Each server gets the port of the one before, and answers as that one did. Nothing is left by any of them."""
    port, text = scene.free_port(), ""
    for cycle in range(number):
        server = Server(scene, port=port)
        server.wait_ready()
        answer = alone(server, SHORT)
        demand(answer == (text or answer), f"cycle {cycle}: another answer than before")
        text = answer
        streaming(server, 2)
        server.get(ROLES[cycle % len(ROLES)]).send_signal(signal.SIGKILL)
        server.wait_exit()
        scene.check_nothing_left()
    return "each starts and answers as the first one"
