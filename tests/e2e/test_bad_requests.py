"""Whatever a client sends, it gets an error object with the right status, and the server goes on."""

import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.servers import ForkedServer, Server
from tests.support.limits import ANSWER_S, scaled

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture(autouse=True)
def _the_server_goes_on(server: Server) -> Iterator[None]:
    yield
    assert server.http.post(CHAT, json=HELLO).status_code == 200


def post(server: Server, url: str, content: bytes, **headers: str) -> httpx.Response:
    return server.http.post(url, content=content, headers={"content-type": "application/json", **headers})


def check(response: httpx.Response, status: int, *said: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for words in said:
        assert words in error["message"]
    return error


BROKEN_BODIES = {
    "nothing": b"",
    "bad JSON": b'{"messages": [',
    "no object": b"[1, 2]",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "top_p": Infinity}',
    "huge number": b'{"prompt": "a", "temperature": 1e999}',
    "lone surrogate": b'{"prompt": "a\\ud800b"}',
    "duplicate key": b'{"prompt": "a", "prompt": "b"}',
    "bad UTF-8": b'{"prompt": "\xff\xfe"}',
    "deep nesting": b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_broken_bodies(server: Server, body: bytes) -> None:
    check(post(server, COMPLETIONS, body), 400)
    check(post(server, CHAT, body.replace(b"prompt", b"messages")), 400)


WRONG_VALUES: list[dict[str, Any]] = [
    {"temperature": "0.5"},
    {"temperature": 2.5},
    {"temperature": -1},
    {"max_tokens": True},
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"top_p": 0},
    {"top_k": -2},
    {"min_p": 1.1},
    {"n": 0},
    {"n": 1000},
    {"seed": 2**63},
    {"stop": [""]},
    {"stop": ["a"] * 17},
    {"stop": 5},
    {"stop_token_ids": [4096]},
    {"stop_token_ids": [-1]},
    {"logit_bias": {"4096": 1}},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"5": 101}},
    {"presence_penalty": 2.1},
    {"repetition_penalty": 0},
    {"min_tokens": 5, "max_tokens": 4},
    {"stream": "yes"},
    {"stream_options": {"include_usage": True}},
    {"top_k": 2**64},
    {"max_tokens": 10**18},
    {"max_new_tokens": 5},
    {"enable_thinking": 1},
]


@pytest.mark.parametrize("wrong", WRONG_VALUES, ids=str)
def test_wrong_values_name_the_field(server: Server, wrong: dict[str, Any]) -> None:
    error = check(server.http.post(CHAT, json={**HELLO, **wrong}), 400)
    assert error["param"].split("[")[0] in wrong


UNSUPPORTED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
]


@pytest.mark.parametrize("asked", UNSUPPORTED, ids=str)
def test_unsupported_is_said_not_ignored(server: Server, asked: dict[str, Any]) -> None:
    check(server.http.post(CHAT, json={**HELLO, **asked}), 400, "not supported")


@pytest.mark.parametrize(
    "messages", [[], [{"role": "robot", "content": "x"}], [{"role": "system", "content": "x"}], "x"]
)
def test_messages_that_no_template_takes(server: Server, messages: Any) -> None:
    check(server.http.post(CHAT, json={"messages": messages}), 400)


@pytest.mark.parametrize("prompt", [[], "", [4096], [-1], ["a", 1], [[]], {"a": 1}, None], ids=str)
def test_prompts_that_are_none(server: Server, prompt: Any) -> None:
    check(server.http.post(COMPLETIONS, json={"prompt": prompt}), 400)


def test_unknown_model(server: Server) -> None:
    error = check(server.http.post(CHAT, json={**HELLO, "model": "gpt-x"}), 404, "gpt-x", "demo")
    assert error["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-x")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context(server: Server, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.completions.create(model="demo", prompt=[5] * 2048, max_tokens=1, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in caught.value.message
    assert "your prompt contains 2048 tokens" in caught.value.message
    assert caught.value.param == "prompt"


def test_no_room_for_the_answer(server: Server) -> None:
    error = check(server.http.post(COMPLETIONS, json={"prompt": [5] * 2000, "max_tokens": 49}), 400, "2048", "2000")
    assert error["code"] == "context_length_exceeded"
    full = server.http.post(COMPLETIONS, json={"prompt": [5] * 2047, "max_tokens": 1})
    assert full.json()["usage"] == {**full.json()["usage"], "prompt_tokens": 2047, "completion_tokens": 1}


LEGAL: list[dict[str, Any]] = [
    {"stop": []},
    {"stop": None},
    {"tools": []},
    {"temperature": 1e-300},
    {"temperature": 1e-45},
    {"temperature": 1.0, "top_p": 1e-300},
    {"temperature": 1.0, "repetition_penalty": 1e-300},
    {"temperature": 1.0, "min_tokens": 2, "stop_token_ids": list(range(4096))},
]


@pytest.mark.parametrize("legal", LEGAL, ids=lambda legal: str(legal)[:60])
def test_odd_but_legal_values(server: Server, legal: dict[str, Any]) -> None:
    response = server.http.post(CHAT, json={**HELLO, "ignore_eos": True, **legal})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 2


def test_bodies_that_are_too_long_or_no_json(server: Server) -> None:
    check(post(server, CHAT, b" " * (4 * 2**20 + 1)), 413, str(4 * 2**20))
    check(server.http.post(CHAT, content=b"a=1", headers={"content-type": "text/plain"}), 415)


LARGE_BODIES = {
    "lists": (COMPLETIONS, b'{"prompt": [' + b",".join([b"[]"] * 1_300_000) + b"]}"),
    "messages": (CHAT, json.dumps({"messages": [{"role": "user", "content": "x" * 50}] * 40_000}).encode()),
}


@pytest.mark.parametrize(("url", "body"), LARGE_BODIES.values(), ids=LARGE_BODIES)
def test_a_large_body_holds_up_no_stream(server: Server, url: str, body: bytes) -> None:
    """The stream goes on between the first byte of the large body and its refusal, which takes a second or two."""
    request = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", COMPLETIONS, json=request) as stream, ThreadPoolExecutor(1) as pool:
        lines = stream.iter_lines()
        next(lines)
        refusal = pool.submit(post, server, url, body)
        num_events = 0
        while not refusal.done():
            num_events += next(lines).startswith("data: ")
    check(refusal.result(), 400)
    assert num_events > 5


LENGTH = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
NO_REQUESTS = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    "noise": random.Random(2).randbytes(100_000),
    "two lengths": LENGTH + b'35\r\nContent-Length: 3\r\n\r\n{"prompt": "Once", "max_tokens": 2}',
    "an endless head": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    "half a body": LENGTH + b'35\r\n\r\n{"prompt": "Once',
}


@pytest.mark.parametrize("data", NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_refused_or_dropped(server: Server, data: bytes) -> None:
    first = b""
    try:
        with socket.create_connection(("127.0.0.1", server.port), scaled(ANSWER_S)) as connection:
            connection.sendall(data)
            with suppress(OSError):  # not a ConnectionError where the server has hung up already
                connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as answer:
                first = answer.readline()
    except ConnectionError:
        pass
    assert first == b"" or first.startswith(b"HTTP/1.1 4")


def test_wrong_paths_and_methods(server: Server) -> None:
    check(server.http.post("/v1/embeddings", json={}), 404)
    check(server.http.get(CHAT), 405)


def test_an_api_key_is_asked_for() -> None:
    with ForkedServer("--api-key", "secret") as server:
        wrong = check(server.http.post(CHAT, json=HELLO), 401)
        assert "secret" not in json.dumps(wrong)
        assert server.http.get("/health").status_code == 200
        client = server.client.with_options(api_key="secret")
        assert client.models.list().data[0].id == "demo"
        with pytest.raises(openai.AuthenticationError):
            server.client.models.list()
