"""Batch lines: checked one by one, and named by file and line when they are wrong."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.strict_json import parse_object

URLS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class BatchLine:
    """One request. ``line_id`` names its content (custom_id, url and body), however the JSON was written."""

    custom_id: str
    url: str
    body: bytes
    line_id: str


def check_lines(
    path: Path, rows: list[bytes], check: Callable[[str, bytes], object], checked: Callable[[], object]
) -> tuple[list[BatchLine], list[str]]:
    """(good lines, one message for each bad one) of the file's ``rows``.

    ``check(url, body)`` raises ApiError for a body that the model cannot answer; ``checked`` is called after each row
    (progress). Blank rows are skipped.
    """
    lines: list[BatchLine] = []
    problems: list[str] = []
    first_seen: dict[str, int] = {}
    for number, raw in enumerate(rows, 1):
        if raw.strip():
            try:
                lines.append(_check_line(raw, number, first_seen, check))
            except ApiError as error:
                problems.append(f"{path}:{number}: {' '.join(error.message.split())}")
        checked()
    return lines, problems


def _check_line(
    raw: bytes, number: int, first_seen: dict[str, int], check: Callable[[str, bytes], object]
) -> BatchLine:
    line = parse_line(raw)
    if line.custom_id in first_seen:
        raise _bad(f"custom_id {line.custom_id!r} is also in line {first_seen[line.custom_id]}")
    first_seen[line.custom_id] = number
    check(line.url, line.body)
    return line


def parse_line(raw: bytes) -> BatchLine:
    """Shape of the line; what the body says is the request parser's matter. Raises ApiError."""
    try:
        fields = parse_object(raw)
    except ApiError as error:
        raise _bad(error.message.replace("the body", "the line", 1)) from None
    custom_id, url, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise _bad("custom_id is missing, empty or not a string")
    if fields.get("method") != "POST":
        raise _bad(f"method must be 'POST', not {fields.get('method')!r}")
    if not isinstance(url, str) or url not in URLS:
        raise _bad(f"url must be one of {', '.join(URLS)}, not {url!r}")
    if not isinstance(body, dict):
        raise _bad("body is missing or not an object")
    if body.get("stream") or body.get("stream_options"):
        raise _bad("stream: a batch writes whole answers, it cannot stream")
    return BatchLine(custom_id, url, json.dumps(body).encode(), _line_id(custom_id, url, body))


def _line_id(custom_id: str, url: str, body: dict[str, Any]) -> str:
    canonical = json.dumps([custom_id, url, body], sort_keys=True).encode()
    return "batch_req_" + hashlib.blake2b(canonical, digest_size=12).hexdigest()


def _bad(message: str) -> ApiError:
    return ApiError(400, message)


def result_line(line: BatchLine, status: int, body: dict[str, Any], error: dict[str, Any] | None) -> bytes:
    """OpenAI's batch result; the id lets a rerun recognise the request that it answers."""
    request_id = body.get("id") or line.line_id.replace("batch_req_", "req_")
    response = {"status_code": status, "request_id": request_id, "body": body}
    result = {"id": line.line_id, "custom_id": line.custom_id, "response": response, "error": error}
    return msgspec.json.encode(result)
