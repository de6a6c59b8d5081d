"""Each answer has a request id, and each request a line in the log that nobody else can write into."""

import asyncio
import logging
import re
from pathlib import Path

import pytest

from splitrank.serving.http.request_log import WithRequestId
from tests.support.front_fakes import LIMIT_S, Front
from tests.support.http_helpers import post_head, raw, serving

LOGGER = "splitrank.serving.http.request_log"


def test_ids_are_taken_or_made(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for path in ("/health", "/v1/models", "/nothing"):
            response = await front.http.get(path, headers={"x-request-id": "mine-1"})
            assert response.headers["x-request-id"] == "mine-1"
        made = set()
        for given in ("", "two words", "ä", "x" * 129):
            response = await front.http.get("/health", headers={"x-request-id": given.encode()})
            assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
            made.add(response.headers["x-request-id"])
        assert len(made) == 4
        for stream in (False, True):
            body = {"prompt": "hi", "stream": stream}
            response = await front.http.post("/v1/completions", json=body, headers={"x-request-id": "mine-2"})
            assert (response.status_code, response.headers["x-request-id"]) == (200, "mine-2")
        assert (await front.http.post("/v1/completions", json={})).headers["x-request-id"].startswith("req_")

    serving(tmp_path, work)


def test_one_line_a_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    caplog.handler.addFilter(WithRequestId())

    async def work(front: Front) -> None:
        caplog.clear()
        await front.http.get("/health")
        for stream in (False, True):
            await front.http.post("/v1/completions", json={"prompt": "hi", "n": 2, "stream": stream})
        await front.http.post("/v1/completions", json={"prompt": 5}, headers={"x-request-id": "mine"})
        await front.http.post("/v1/completions", json={"prompt": "hi", "a\n\x1b[31mä": 1})
        await front.http.get("/a%0aINFO%20fake%20line%1b[31m")

    serving(tmp_path, work)
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    whole, streamed, refused, steering, strange = lines
    seconds = r"\d+\.\d{3} s"
    counts = rf"1\+10 tokens, the first after {seconds}, 2 x stop"
    for line in (whole, streamed):
        assert re.fullmatch(rf'127\.0\.0\.1:\d+ "POST /v1/completions" 200, {seconds}, {counts}', line)
    assert re.fullmatch(
        rf'127\.0\.0\.1:\d+ "POST /v1/completions" 400, {seconds}: Expected `str \| array`, got `int` - at `prompt`',
        refused,
    )
    assert re.fullmatch(
        rf'.* "POST /v1/completions" 400, {seconds}: a\\n\\x1b\[31m\\xe4 is not supported by this server', steering
    )
    assert '"GET /a%0aINFO%20fake%20line%1b[31m" 404' in strange
    assert " [mine]" in [getattr(record, "request", None) for record in caplog.records]


def test_a_client_that_hangs_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    async def work(front: Front) -> None:
        body = b'{"prompt": "hi"}'
        _, writer = await raw(front, post_head(len(body), "/v1/completions"), body)
        await asyncio.wait_for(front.client.hanging.wait(), LIMIT_S)
        writer.close()
        await asyncio.wait_for(front.client.aborted.wait(), LIMIT_S)

    serving(tmp_path, work, hang_after=1)
    [line] = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert re.search(r'"POST /v1/completions" hung up, \d+\.\d{3} s, 1\+1 tokens, .*, not finished$', line)
