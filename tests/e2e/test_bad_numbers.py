"""A request whose numbers are none (an embedding row that nobody trained is NaN) fails, and nobody else."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.checkpoints import copy_demo, own_weights
from tests.e2e.servers import ForkedServer, Server, wait_until

BAD_TOKEN = 4070
BFLOAT16_NAN = b"\xc0\x7f"
QUESTION = "Question: Tom has {} pens and buys 4 more. How many pens has he?\nAnswer:"
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "presence_penalty": 0.5},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 0.6, "seed": 2, "top_k": 20, "top_p": 0.95},
]
GOOD = [
    {"prompt": QUESTION.format(index), "max_tokens": 8, "ignore_eos": True, "logprobs": 1, **SAMPLINGS[index % 4]}
    for index in range(8)
]
# Short and longer than a page; it comes to a page and a slot of its own, and leaves them to others.
BAD = [
    {"prompt": [70, 71, BAD_TOKEN] + [80] * length, "max_tokens": 30, **sampling}
    for length in (0, 200)
    for sampling in SAMPLINGS
]


def with_a_row_of_nan(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + size])["model.language_model.embed_tokens.weight"]
    assert entry["dtype"] == "BF16"
    start, row_bytes = 8 + size + entry["data_offsets"][0], 2 * entry["shape"][1]
    place = start + BAD_TOKEN * row_bytes
    return data[:place] + BFLOAT16_NAN * entry["shape"][1] + data[place + row_bytes :]


@pytest.fixture(scope="module", params=[1, 2], ids=["pp=1", "pp=2"])
def bad_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = copy_demo(Path(tmp_path_factory.mktemp("nan")) / "demo")
    own_weights(folder, with_a_row_of_nan)
    flags = ("--dtype", "float32", "--max-model-len", 1024, "--max-running-requests", 12)
    with ForkedServer("--model", folder, "--pp", request.param, *flags) as server:
        yield server


def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    return server.http.post("/v1/completions", json=body)


def choice(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["choices"][0]
    return {"text": found["text"], "tokens": found["logprobs"]["tokens"]}


def check_failure(response: httpx.Response) -> None:
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "the model's logits for output token 0 hold NaN",
        "type": "server_error",
        "param": None,
        "code": "invalid_numbers",
    }


def test_a_request_of_bad_numbers_fails_alone(bad_server: Server) -> None:
    with ThreadPoolExecutor(len(GOOD) + 1) as pool:
        expected = [choice(response) for response in pool.map(lambda body: post(bad_server, body), GOOD)]
        for bad in BAD:
            bodies = [*GOOD[:4], bad, *GOOD[4:]]
            responses = list(pool.map(lambda body: post(bad_server, body), bodies))
            check_failure(responses.pop(4))
            assert [choice(response) for response in responses] == expected
        later = [choice(response) for response in pool.map(lambda body: post(bad_server, body), GOOD)]
    assert later == expected
    assert [choice(post(bad_server, body)) for body in GOOD] == expected
    wait_until(bad_server.is_idle, "slots and pages to come back")


def test_a_beginning_of_bad_numbers_is_shared_only_with_those_who_have_it(bad_server: Server) -> None:
    """From the third prompt on it comes from the prefix cache, which remembers the NaN of just that beginning."""
    bad, good = [BAD_TOKEN] + [80] * 150, [81] + [80] * 150
    expected = [choice(post(bad_server, {**GOOD[0], "prompt": [*good, index]})) for index in range(3)]
    for index in range(4):
        check_failure(post(bad_server, {"prompt": [*bad, index], "temperature": 0}))
    assert [choice(post(bad_server, {**GOOD[0], "prompt": [*good, index]})) for index in range(3)] == expected


def test_in_a_stream_it_is_an_error_like_any_other(bad_server: Server) -> None:
    check_failure(post(bad_server, {**BAD[0], "stream": True}))
