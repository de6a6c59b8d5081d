"""Reads request bodies, with limits for their size, their time, and the memory of all together."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope

from splitrank.serving.http.parsing import SMALL_BODY_BYTES
from splitrank.serving.http.responses import ClientGoneError
from splitrank.serving.openai.errors import ApiError, unavailable

# So much of a refused body is read and dropped: a client that reads after it has written all gets our 413, no reset.
DISCARD_BYTES = 256 * 2**20
# So many bodies of the largest size may be in memory at once. Small ones are not counted, so they are never refused.
LARGE_BODIES = 8
# A token has seldom more than 4 bytes of text; JSON that writes each character as \\uXXXX makes 24 of them.
BYTES_PER_TOKEN = 32
LEAST_LIMIT = 4 * 2**20


def body_limit(max_body_bytes: int, max_model_len: int) -> int:
    """The user's limit in bytes, or, if that is 0, what prompts of the whole context need."""
    return max_body_bytes or max(LEAST_LIMIT, BYTES_PER_TOKEN * max_model_len)


class Bodies:
    """The bodies that are being read or parsed. ``timeout_s`` limits the time that a body takes to arrive."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._num_held = 0  # bytes of large bodies

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive, max_bytes: int) -> AsyncIterator[bytes]:
        """The body. Its memory counts as held until the ``with`` block ends: keep no reference longer.

        Raises ``ApiError``: 413 above ``max_bytes``, 408 after ``timeout_s``, 503 while too many bytes are held, 415
        for any content type but JSON; and ``ClientGoneError``.
        """
        body = _Body(max_bytes)
        try:
            yield await self._read(scope, receive, body)
        finally:
            self._num_held -= body.num_held

    async def _read(self, scope: Scope, receive: Receive, body: "_Body") -> bytes:
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > DISCARD_BYTES:
            raise _closing(body.too_large())
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._collect(receive, body)
        except TimeoutError:
            message = f"the request body did not arrive within {self._timeout_s:g} s"
            raise _closing(ApiError(408, message, code="request_timeout")) from None
        _check_type(_header(scope, b"content-type"), _header(scope, b"content-encoding"))
        return b"".join(body.parts)

    async def _collect(self, receive: Receive, body: "_Body") -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            more = message.get("more_body", False)
            body.add(message.get("body", b""))
            self._hold(body)
            if body.num_bytes > DISCARD_BYTES:
                raise _closing(body.too_large())
        if body.num_bytes > body.max_bytes:
            raise body.too_large()
        if body.discarded:
            raise unavailable("too many large requests are being read", "too_many_large_requests")

    def _hold(self, body: "_Body") -> None:
        num_large = body.num_bytes if body.num_bytes > SMALL_BODY_BYTES else 0
        num_held = self._num_held + num_large - body.num_held
        if body.num_bytes > body.max_bytes or num_held > LARGE_BODIES * body.max_bytes:
            body.discard()
        if not body.discarded:
            self._num_held, body.num_held = num_held, num_large


class _Body:
    """The chunks of one body; after it is ``discarded``, the rest is only counted."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_held = 0  # of them, counted as large
        self.parts: list[bytes] = []
        self.discarded = False

    def add(self, part: bytes) -> None:
        self.num_bytes += len(part)
        if not self.discarded:
            self.parts.append(part)

    def discard(self) -> None:
        self.discarded = True
        self.parts.clear()

    def too_large(self) -> ApiError:
        message = f"the request body is larger than {self.max_bytes} bytes"
        return ApiError(413, message, code="request_too_large")


def _check_type(content_type: str, encoding: str) -> None:
    media_type = content_type.split(";")[0].strip().lower()
    if media_type != "application/json":
        given = f"not {media_type[:100]!r}" if media_type else "and none is given"
        raise ApiError(415, f"the content type must be application/json, {given}", code="unsupported_media_type")
    if encoding.lower() not in ("", "identity"):
        raise ApiError(415, f"the content encoding {encoding[:100]!r} is not supported", code="unsupported_media_type")


def _closing(error: ApiError) -> ApiError:
    """Closes the connection, which cannot be used again while the rest of the body arrives."""
    error.headers["Connection"] = "close"
    return error


def _header(scope: Scope, name: bytes) -> str:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
