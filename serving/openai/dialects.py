"""Errors as each API has them: OpenAI's for all urls but Anthropic's."""

from typing import Any

import msgspec

from splitrank.serving.openai.errors import ApiError

MESSAGES_URL = "/v1/messages"
RESPONSES_URL = "/v1/responses"
DONE = b"data: [DONE]\n\n"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    503: "overloaded_error",
}


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an answer with the error's status."""
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    return error.body()


def error_events(path: str, error: ApiError) -> bytes:
    """What ends a stream that had begun."""
    if is_anthropic(path):
        return named_event(error_body(path, error))
    if path == RESPONSES_URL:
        fields = {"code": error.code or error.type, "message": error.message, "param": error.param}
        return named_event({"type": "error", **fields, "sequence_number": 0})
    return b"data: " + msgspec.json.encode(error.body()) + b"\n\n" + DONE


def is_anthropic(path: str) -> bool:
    return path == MESSAGES_URL or path.startswith(MESSAGES_URL + "/")


def named_event(event: dict[str, Any]) -> bytes:
    """A server-sent event that has its type for its name, too."""
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"
