"""Clients of a case: each a thread with one streamed request, that says what became of it."""

import json
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Literal

from case import POLL_S, CaseFailed, demand, wait_for
from server import ASK_S, Server

CLIENT_S = 90.0  # without a byte for so long, a client counts as hung
# finished: to its end. error: an error event. refused: a status that is not 200. cut: the connection ended before.
End = Literal["finished", "error", "refused", "cut", "hung"]
LONG = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


class Client(threading.Thread):
    """Posts ``body`` to ``/v1/completions`` as a stream. ``end`` and ``detail`` tell of the end, ``ended_at`` when."""

    def __init__(self, server: Server, body: dict[str, Any], hang_up_after: int | None = None) -> None:
        super().__init__(daemon=True)
        self._port = server.port
        self._body = json.dumps({**body, "stream": True})
        self._hang_up_after = hang_up_after  # events
        self.num_events = 0
        self.text = ""
        self.end: End | None = None
        self.detail = ""
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=CLIENT_S)
        try:
            connection.request("POST", "/v1/completions", self._body, {"content-type": "application/json"})
            self.end, self.detail = self._read(connection.getresponse())
        except TimeoutError:
            self.end = "hung"
        except (OSError, HTTPException, ValueError) as error:
            self.end, self.detail = "cut", type(error).__name__
        finally:
            self.ended_at = time.monotonic()
            connection.close()

    def _read(self, response: HTTPResponse) -> tuple[End, str]:
        if response.status != 200:
            error = json.loads(response.read())["error"]
            return "refused", f"{response.status} {error['code']}: {error['message']}"
        finished = ""
        for line in response:
            data = line.strip().removeprefix(b"data: ")
            if not data or data.startswith(b":"):
                continue
            if data == b"[DONE]":
                return ("finished", finished) if finished else ("cut", "[DONE] without a finish_reason")
            event = json.loads(data)
            if "error" in event:
                return "error", event["error"]["message"]
            self.num_events += 1
            self.text += event["choices"][0]["text"]
            finished = event["choices"][0]["finish_reason"] or finished
            if self.num_events == self._hang_up_after:
                return "cut", "hung up by itself"
        return "cut", "the stream ended without [DONE]"


def long_prompt(length: int, seed: int) -> dict[str, Any]:
    """A body whose prompt takes long to compute. Prompts of different seeds share no prefix."""
    return {**LONG, "prompt": [(seed * 7919 + index * 31) % 4000 + 5 for index in range(length)], "max_tokens": 100}


def streaming(server: Server, number: int, body: dict[str, Any] = LONG, events: int = 2) -> list[Client]:
    """Clients whose streams have begun, with far more to come."""
    clients = [Client(server, body) for _ in range(number)]
    began = [lambda client=client: client.num_events >= events or client.end for client in clients]
    for has_begun in began:
        wait_for(has_begun, "a stream to begin", ASK_S)
    for client in clients:
        demand(client.end is None, f"a stream has ended already: {client.end} {client.detail}")
    return clients


def join_all(clients: Sequence[Client], limit_s: float) -> None:
    """Waits for the end of all. ``CaseFailed`` if one hangs."""
    deadline = time.monotonic() + limit_s
    for client in clients:
        while client.is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if client.is_alive():
            raise CaseFailed(f"a client got no end within {limit_s:g} s (it has {client.num_events} events)")


def demand_errors(clients: Sequence[Client], since: float, said: str, limit_s: float) -> float:
    """Every client gets an error that says ``said`` within the limit. Seconds from ``since`` to the last one."""
    join_all(clients, limit_s)
    for client in clients:
        told = client.end in ("error", "refused") and said in client.detail
        demand(told, f"a client was told {client.end} {client.detail!r} instead of {said!r}")
    return max((client.ended_at - since for client in clients), default=0.0)


def demand_finished(clients: Sequence[Client], limit_s: float) -> None:
    join_all(clients, limit_s)
    for client in clients:
        demand(client.end == "finished", f"a stream ended as {client.end}: {client.detail}")
