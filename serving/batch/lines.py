"""Reads batch lines and makes result lines. A bad line gets an error result of its own, with its line number."""

import codecs
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from splitrank.serving.openai.errors import ApiError, bad_request
from splitrank.serving.openai.strict_json import parse_object

# How files begin that are no lines of UTF-8: each line would be an error of its own, and none would say why.
OTHER_KINDS = {
    b"\x1f\x8b": "gzip",
    b"(\xb5/\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
URLS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class BatchLine:
    """One request. ``line_id`` names its content (custom_id, url and body), however the JSON was written."""

    number: int  # in the file, from 1
    custom_id: str
    url: str
    body: bytes
    line_id: str


@dataclass(frozen=True)
class BadLine:
    """A line that is no request; ``custom_id`` if it can be read."""

    number: int
    custom_id: str | None
    line_id: str
    error: ApiError


def read_rows(path: Path) -> list[bytes]:
    """The rows of an input file. ``ValueError`` if it is no text in UTF-8 from its first bytes on."""
    content = path.read_bytes()
    for start, kind in OTHER_KINDS.items():
        if content.startswith(start):
            raise ValueError(f"{path} is {kind}; batch lines are JSON in UTF-8, a request a line")
    return content.removeprefix(codecs.BOM_UTF8).split(b"\n")


def read_lines(rows: Iterable[bytes]) -> tuple[list[BatchLine], list[BadLine]]:
    """Requests and bad lines of the file's ``rows``; blank rows are skipped. Bodies are not parsed here."""
    lines: dict[str, BatchLine] = {}
    bad: list[BadLine] = []
    for number, raw in enumerate(rows, 1):
        if raw.strip():
            try:
                line = parse_line(raw, number)
                if line.custom_id in lines:
                    message = f"custom_id {line.custom_id!r} is also in line {lines[line.custom_id].number}"
                    raise bad_request(message, "custom_id", "duplicate_custom_id")
                lines[line.custom_id] = line
            except Exception as error:  # an error of ours, too, ends this line only
                line_id = "batch_req_" + hashlib.blake2b(raw, digest_size=12).hexdigest()
                bad.append(BadLine(number, _custom_id(raw), line_id, as_api_error(error)))
    return list(lines.values()), bad


def parse_line(raw: bytes, number: int = 1) -> BatchLine:
    """Checks the line around the body; the request parser checks the body. Raises ``ApiError``."""
    try:
        fields = parse_object(raw)
    except ApiError as error:
        raise bad_request(error.message.replace("the body", "the line", 1)) from None
    custom_id, url, body = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise bad_request("custom_id is missing, empty or not a string", "custom_id")
    if fields.get("method") != "POST":
        raise bad_request(f"method must be 'POST', not {fields.get('method')!r:.80}", "method")
    if not isinstance(url, str) or url not in URLS:
        raise bad_request(f"url must be one of {', '.join(URLS)}, not {url!r:.80}", "url")
    if not isinstance(body, dict):
        raise bad_request("body is missing or not an object", "body")
    if body.get("stream") or body.get("stream_options"):
        raise bad_request("stream: a batch writes whole answers, it cannot stream", "stream")
    return BatchLine(number, custom_id, url, json.dumps(body).encode(), _line_id(custom_id, url, body))


def _line_id(custom_id: str, url: str, body: dict[str, Any]) -> str:
    canonical = json.dumps([custom_id, url, body], sort_keys=True).encode()
    return "batch_req_" + hashlib.blake2b(canonical, digest_size=12).hexdigest()


def _custom_id(raw: bytes) -> str | None:
    """The custom_id of a bad line, read as leniently as possible."""
    try:
        fields = json.loads(raw, parse_int=lambda _: None)
    except (ValueError, RecursionError):
        return None
    custom_id = fields.get("custom_id") if isinstance(fields, dict) else None
    return custom_id if isinstance(custom_id, str) else None


def as_api_error(error: Exception) -> ApiError:
    """An unexpected error becomes a 500 with the type of the error."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, f"{type(error).__name__}: {error}", type="server_error", code="internal_error")


def result_line(line: BatchLine | BadLine, status: int, body: dict[str, Any], error: dict[str, Any] | None) -> bytes:
    """A result line as OpenAI writes it. By its id, a rerun recognises the request that it answers."""
    request_id = body.get("id") or line.line_id.replace("batch_req_", "req_")
    response = {"status_code": status, "request_id": request_id, "body": body}
    result = {"id": line.line_id, "custom_id": line.custom_id, "response": response, "error": error}
    try:
        return msgspec.json.encode(result)  # parts of an answer are JSON already
    except UnicodeEncodeError:
        # An error's message may quote a lone surrogate, which is written as a JSON escape.
        return json.dumps(result, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def error_line(line: BatchLine | BadLine, error: ApiError) -> bytes:
    """The result of a request that failed, with OpenAI's error object of a batch, which names the line."""
    about = {"code": error.code, "message": error.message, "param": error.param, "line": line.number}
    return result_line(line, error.status, error.body(), about)
