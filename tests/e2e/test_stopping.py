"""Requests that clients give up, and servers that are asked to stop."""

import signal
import socket
from collections.abc import Callable

import httpx
import pytest

from tests.e2e.servers import Server, processes_of, run_dirs, wait_until

LONG = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True}
LONG_PROMPT = {**LONG, "prompt": [7] * 1900, "max_tokens": 100}


def hang_up_stream(server: Server) -> None:
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        next(response.iter_lines())


def hang_up_whole(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=LONG, timeout=0.5)


def hang_up_in_the_prompt(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=LONG_PROMPT, timeout=0.1)


def hang_up_many_choices(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json={**LONG, "n": 4}, timeout=0.5)


@pytest.mark.parametrize("hang_up", [hang_up_stream, hang_up_whole, hang_up_in_the_prompt, hang_up_many_choices])
def test_hanging_up_aborts_the_request(server: Server, hang_up: Callable[[Server], None]) -> None:
    wait_until(server.is_idle, "the server to be idle")
    before = server.metric("engine_aborts_total")
    hang_up(server)
    aborts = 4 if hang_up is hang_up_many_choices else 1
    wait_until(lambda: server.metric("engine_aborts_total") == before + aborts, "the abort")
    wait_until(server.is_idle, "slots and pages to come back")


def test_a_stop_string_found_by_the_front_frees_the_slot(server: Server) -> None:
    text = server.http.post("/v1/completions", json={**LONG, "max_tokens": 30, "temperature": 0}).json()
    stop = text["choices"][0]["text"][40:43]
    stopped = {**LONG, "temperature": 0, "stop": stop}
    assert server.http.post("/v1/completions", json=stopped).json()["choices"][0]["finish_reason"] == "stop"
    wait_until(server.is_idle, "slots and pages to come back")


def check_clean_exit(server: Server) -> None:
    assert server.wait_exit() == 0
    assert not processes_of(server.temporary)
    assert not run_dirs(server.temporary)
    assert "Traceback" not in server.stderr


def test_sigterm_lets_open_requests_finish() -> None:
    with Server("--max-model-len", 2048, "--drain-timeout-s", 3600) as server:
        request = {**LONG, "max_tokens": 200, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=request) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining: 1 open" in server.stderr, "the draining")
            refused = httpx.post(server.url + "/v1/completions", json=LONG)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "engine_draining"
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        check_clean_exit(server)


def test_a_second_signal_does_not_wait_for_the_requests() -> None:
    with Server("--max-model-len", 8192, "--drain-timeout-s", 3600) as server:
        request = {**LONG, "max_tokens": 8000, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=request) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: "draining" in server.stderr, "the draining")
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"error"' in rest[-2]
        check_clean_exit(server)


def test_the_port_is_taken_while_the_server_runs(server: Server) -> None:
    with socket.socket() as listener, pytest.raises(OSError, match="in use"):
        listener.bind(("127.0.0.1", server.port))
