"""Cases at the server's door: clients that hang up, send too much, too slowly or nonsense, or do not read."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from random import Random

from case import Case, demand, wait_for
from client import LONG, Client, demand_finished, join_all, streaming
from interruptions import FINISH_S, alone
from scene import END_S, Scene
from server import Server

NUM_STORM = 200
NUM_HONEST = 3
NUM_HUGE = 4
NUM_DEAF = 10
DROPPED_S = 300.0  # an answer of megabytes takes its time on a busy machine
HEAD_TIMEOUT_S = 30  # a constant of the server
SLACK_S = 15.0
SEND_TIMEOUT_S = 3
BODY_TIMEOUT_S = 2
HUGE_BYTES = 60 * 2**20
HONEST = {**LONG, "max_tokens": 150}
SHORT_PROMPT = b'{"prompt": "Once", "max_tokens": 2}'


def cases() -> Iterator[Case]:
    for name, harm in {
        f"{NUM_STORM} clients hang up in their streams": storm,
        "40 clients hang up in their prompts": storm_in_prompts,
        f"{NUM_HUGE} bodies of 60 MB, lengths declared": huge_declared,
        f"{NUM_HUGE} bodies of 60 MB, chunked": huge_chunked,
        "50 heads, a byte a second": slow_heads,
        "50 bodies that never end": slow_bodies,
        "50 connections that send nothing": silent_connections,
        f"{NUM_DEAF} clients that read nothing": deaf_clients,
        "TLS, noise, half a request, two lengths": nonsense,
    }.items():
        yield Case("clients", name, _beside_honest_ones(harm, *OPTIONS.get(harm, ())))
    yield Case("clients", "more requests than places", too_many_requests)
    yield Case("clients", "more connections than --max-connections", too_many_connections)


def _beside_honest_ones(harm: Callable[[Server], str], *options: object) -> Callable[[Scene], str]:
    """While it is played, honest streams get what they would get alone; afterwards all is as before."""

    def play(scene: Scene) -> str:
        server = Server(scene, "--log-level", "warning", *options)
        server.wait_ready()
        text = alone(server, HONEST)
        descriptors = server.num_descriptors()
        honest = streaming(server, NUM_HONEST, HONEST)
        note = harm(server)
        demand_finished(honest, FINISH_S)
        demand(
            all(client.text == text for client in honest), "an honest client's answer differs from the one of before"
        )
        demand(alone(server, HONEST) == text, "a later answer differs from the one of before")
        server.wait_idle()
        wait_for(lambda: server.num_descriptors() <= descriptors + 1, "the descriptors to be closed", END_S)
        server.stop()
        return f"{note}; the others' answers as without it"

    return play


# ------------------------------------------------------------------ clients that go


def storm(server: Server) -> str:
    draw = Random(1)
    going = [Client(server, LONG, hang_up_after=draw.randint(1, 12)) for _ in range(NUM_STORM)]
    join_all(going, FINISH_S)
    for client in going:
        demand(client.detail == "hung up by itself", f"a client saw {client.end} {client.detail}")
    return "slots, pages and descriptors come back"


def storm_in_prompts(server: Server) -> str:
    body = json.dumps({**LONG, "prompt": [9] * 4000, "stream": True}).encode()
    for _ in range(40):
        connect(server, request(body)).close()
    return "slots, pages and descriptors come back"


# ------------------------------------------------------------------ clients that send too much, or too slowly


def request(body: bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if not any(header.startswith("Transfer") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def connect(server: Server, data: bytes = b"", limit_s: float = FINISH_S) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=limit_s)
    connection.sendall(data)
    return connection


def status_of(connection: socket.socket) -> int:
    """Of the first answer; 0 if the connection ends without one."""
    try:
        with connection.makefile("rb") as file:
            words = file.readline().split()
    except ConnectionError:
        return 0
    return int(words[1]) if len(words) > 1 else 0


def huge_declared(server: Server) -> str:
    return _post_huge(server, [request(b" " * HUGE_BYTES)])


def huge_chunked(server: Server) -> str:
    piece = b" " * 2**20
    chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    head = request(b"", "Transfer-Encoding: chunked")
    return _post_huge(server, [head, *[chunk] * (HUGE_BYTES // len(piece)), b"0\r\n\r\n"])


def _post_huge(server: Server, parts: list[bytes]) -> str:
    statuses: list[int] = []
    before = server.memory_mib()

    def post() -> None:
        with closing(connect(server)) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                statuses.append(status_of(connection))
            except OSError:
                statuses.append(0)

    threads = [threading.Thread(target=post, daemon=True) for _ in range(NUM_HUGE)]
    for thread in threads:
        thread.start()
    most = before
    while any(thread.is_alive() for thread in threads):
        most = max(most, server.memory_mib())
        time.sleep(0.05)
    demand(statuses == [413] * NUM_HUGE, f"answered {statuses}")
    demand(most - before < 64, f"the front grew by {most - before} MiB")
    return f"413, {most - before} MiB more memory meanwhile"


def slow_heads(server: Server) -> str:
    return _close_slow(server, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a", HEAD_TIMEOUT_S, {0, 408})


def slow_bodies(server: Server) -> str:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    return _close_slow(server, head, b" ", BODY_TIMEOUT_S, {408})


def silent_connections(server: Server) -> str:
    return _close_slow(server, b"", b"", HEAD_TIMEOUT_S, {0, 408})


def _close_slow(server: Server, begin: bytes, then: bytes, timeout_s: float, expected: set[int]) -> str:
    """Opens connections that begin so and send a byte a second; the server ends them in time, and answers meanwhile."""
    began, statuses = time.monotonic(), set()
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(server, begin, limit_s=0.001)) for _ in range(50)]
        while waiting:
            demand(time.monotonic() - began < timeout_s + SLACK_S, f"{len(waiting)} connections are still open")
            demand(server.ask("/health", limit_s=5.0)[0] == 200, "/health does not answer")
            for connection in [*waiting]:
                try:
                    connection.sendall(then)
                    statuses.add(status_of(connection))
                except TimeoutError:
                    continue
                except ConnectionError:
                    statuses.add(0)
                waiting.remove(connection)
            time.sleep(1.0)
    demand(statuses <= expected, f"answered {statuses}")
    answer = "408" if 408 in statuses else "closed"
    return f"{answer} after {timeout_s:g} s"


# ------------------------------------------------------------------ clients that do not read, or send nonsense


def deaf_clients(server: Server) -> str:
    """They ask for more than the kernel keeps for a connection: one for a stream, the others for documents."""
    body = {**LONG, "n": 8, "logprobs": 5, "return_token_ids": True, "stream": True}
    documents = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 60
    before, aborts = server.memory_mib(), server.metric("engine_aborts_total")
    with ExitStack() as stack:
        for asked in (request(json.dumps(body).encode()), *[documents] * (NUM_DEAF - 1)):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(asked)
        dropped = "has taken nothing of its answer"
        wait_for(lambda: server.stderr.count(dropped) == NUM_DEAF, "the clients to be dropped", DROPPED_S)
        more = server.memory_mib() - before
    wait_for(lambda: server.metric("engine_aborts_total") == aborts + 8, "the stream's choices to be aborted", END_S)
    demand(more < 64, f"the front grew by {more} MiB")
    return f"dropped, {more} MiB more memory meanwhile"


def nonsense(server: Server) -> str:
    draw = Random(2)
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500),
        draw.randbytes(100_000),
        request(SHORT_PROMPT, "Content-Length: 3"),
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        request(b'{"prompt": "\xff\xfe"}'),
        request(b"[" * 100_000),
    ):
        try:
            with closing(connect(server, data)) as connection:
                status = status_of(connection)
        except ConnectionError:
            status = 0
        demand(status == 0 or 400 <= status < 500, f"answered {status} to {data[:40]!r}")
    with closing(connect(server, request(b" " * 1000)[:-500])):
        pass
    return "400 or closed"


def too_many_requests(scene: Scene) -> str:
    server = Server(scene, "--max-running-requests", 2, "--max-queued-requests", 4, "--log-level", "warning")
    server.wait_ready()
    text = alone(server, HONEST)
    clients = [Client(server, HONEST) for _ in range(40)]
    join_all(clients, FINISH_S)
    answered = [client for client in clients if client.end == "finished"]
    refused = [client for client in clients if client.end == "refused" and client.detail.startswith("503 ")]
    demand(len(answered) + len(refused) == len(clients), "a client saw something else than an answer or 503")
    demand(len(answered) >= 6 and refused, f"{len(answered)} answered, {len(refused)} refused")
    demand(all(client.text == text for client in answered), "an answer differs from the one alone")
    server.wait_idle()
    server.stop()
    return f"{len(answered)} whole answers, {len(refused)} times 503"


def too_many_connections(scene: Scene) -> str:
    server = Server(scene, "--max-connections", NUM_HONEST, "--log-level", "warning")
    server.wait_ready()
    text = alone(server, HONEST)
    honest = streaming(server, NUM_HONEST, HONEST)
    refused, _ = server.ask("/v1/completions", HONEST)
    demand(refused == 503, f"one connection more is answered {refused}")
    probed, _ = server.ask("/ready")
    demand(probed == 200, f"/ready is answered {probed} meanwhile")
    demand_finished(honest, FINISH_S)
    demand(all(client.text == text for client in honest), "an honest client's answer differs from that of before")
    wait_for(lambda: server.ask("/version")[0] == 200, "an answer when they have gone", END_S)
    server.stop()
    return "503, /ready 200; the others' answers as without it"


OPTIONS: dict[Callable[[Server], str], tuple[object, ...]] = {
    slow_bodies: ("--body-timeout-s", BODY_TIMEOUT_S),
    deaf_clients: ("--send-timeout-s", SEND_TIMEOUT_S, "--log-level", "info"),
}
