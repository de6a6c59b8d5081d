"""Many requests at once get the answers that each of them gets alone."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.servers import ForkedServer, Server, wait_until

NUM_REQUESTS = 32
WORDS = ["river", "stone", "cloud", "seven", "maple", "engine", "window", "yellow", "market", "silver"]


def requests_of_all_lengths() -> list[dict[str, Any]]:
    """Prompts from 2 to about 150 tokens, answers of 4 to 19; half of them sampled with a seed."""
    generator = random.Random(5)
    requests = []
    for index in range(NUM_REQUESTS):
        prompt = f"{index} " + " ".join(generator.choices(WORDS, k=1 + (index * 7) % 60))
        sampling = {"temperature": 0} if index % 2 else {"temperature": 1.0, "seed": index}
        requests.append({"prompt": prompt, "max_tokens": 4 + index // 2, "ignore_eos": True, **sampling})
    return requests


def answer(server: Server, request: dict[str, Any]) -> str:
    response = server.http.post("/v1/completions", json=request)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def test_thirty_two_at_once_answer_as_alone(server: Server) -> None:
    requests = requests_of_all_lengths()
    alone = [answer(server, request) for request in requests]
    steps = server.metric("engine_steps_total")
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        together = list(pool.map(lambda request: answer(server, request), requests))
    assert together == alone
    wait_until(server.is_idle, "slots and pages to come back")
    num_tokens = sum(request["max_tokens"] for request in requests)
    assert server.metric("engine_steps_total") - steps < num_tokens / 2  # they did share steps


def test_tensor_parallel_answers_like_the_pipeline(server: Server) -> None:
    """Only rounding differs between the layouts, and in float32 that flips no token of these."""
    with ForkedServer("--tp", 2, "--dtype", "float32", "--max-model-len", 2048) as split:
        for temperature in (0.0, 1.0):
            request = {"prompt": "A fine day", "max_tokens": 24, "temperature": temperature, "seed": 11}
            expected = answer(server, request)
            assert answer(split, request) == expected
            chunks = split.client.completions.create(model="demo", stream=True, **request)
            assert "".join(chunk.choices[0].text for chunk in chunks) == expected
