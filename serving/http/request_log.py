"""A name for each request, in its answer and in the log, and one line in the log when it has ended."""

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitrank.serving.openai.usage import Usage

HEADER = b"x-request-id"
USAGE = "splitrank.usage"  # where a route leaves its counts for the line
REFUSAL = "splitrank.refusal"  # where the reason of a refusal is left for it
PROBES = ("/health", "/ready", "/metrics", "/stats")  # asked every few seconds: their lines are for debugging
_GIVEN = re.compile(rb"[\x21-\x7e]{1,128}")
_current: ContextVar[str] = ContextVar("request_id", default="")
_log = logging.getLogger(__name__)


class RequestLog:
    """Pure ASGI. Takes the client's ``X-Request-Id`` if it is printable, else makes one; every answer has it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        name = _name_of(scope)
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (HEADER, name)]}
            await send(message)

        began = time.monotonic()
        _current.set(name.decode())
        try:
            await self._app(scope, receive, named)
        finally:
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            _log.log(level, "%s", _line(scope, status, time.monotonic() - began))


class WithRequestId(logging.Filter):
    """Every line that is written for a request names it."""

    def filter(self, record: logging.LogRecord) -> bool:
        name = _current.get()
        record.request = f" [{name}]" if name else ""
        return True


def _name_of(scope: Scope) -> bytes:
    given: bytes = next((value for key, value in scope["headers"] if key == HEADER), b"")
    return given if _GIVEN.fullmatch(given) else b"req_" + uuid.uuid4().hex.encode()


def _line(scope: Scope, status: int, seconds: float) -> str:
    # The raw path: what a client escaped stays escaped, so that nobody writes into our log.
    path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]
    client = scope.get("client") or ("?", 0)
    usage = scope.get(USAGE)
    counts = f", {usage.summary()}" if isinstance(usage, Usage) else ""
    how = str(status) if status else "hung up"
    reason = f": {_one_line(scope[REFUSAL])}" if REFUSAL in scope else ""
    return f'{client[0]}:{client[1]} "{scope["method"]} {path}" {how}, {seconds:.3f} s{counts}{reason}'


def _one_line(text: str) -> str:
    """A refusal may quote the request: nothing in it may end the line or steer a terminal."""
    return text[:300].encode("unicode_escape").decode("ascii")
