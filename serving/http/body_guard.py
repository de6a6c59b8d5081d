"""Request bodies arrive whole, in time, not too large, and as JSON, before any handler runs."""

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitrank.serving.http.responses import ClientGoneError, error_response
from splitrank.serving.openai.errors import ApiError

# A client that only reads after it wrote all must get our 413, not a reset: this many times the limit is thrown away.
DISCARD_FACTOR = 4


class BodyGuard:
    """Pure ASGI. 413 above ``max_bytes``, 408 after ``timeout_s``, 415 for any content type but JSON."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
        except ClientGoneError:
            return None
        except ApiError as error:
            return await error_response(error)(scope, receive, send)
        return await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self._max_bytes * DISCARD_FACTOR:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._collect(receive)
        except TimeoutError:
            message = f"the request body did not arrive within {self._timeout_s:g} s"
            raise _closing(ApiError(408, message, code="request_timeout")) from None
        _check_type(_header(scope, b"content-type"), _header(scope, b"content-encoding"))
        return body

    async def _collect(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        num_bytes = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part, more = message.get("body", b""), message.get("more_body", False)
            num_bytes += len(part)
            if num_bytes <= self._max_bytes:
                parts.append(part)
            else:
                parts.clear()
            if num_bytes > self._max_bytes * DISCARD_FACTOR:
                break
        if num_bytes > self._max_bytes:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        message = f"the request body is larger than {self._max_bytes} bytes"
        return _closing(ApiError(413, message, code="request_too_large"))


def _check_type(content_type: str, encoding: str) -> None:
    media_type = content_type.split(";")[0].strip().lower()
    if media_type != "application/json":
        message = f"the content type must be application/json, not {media_type[:100] or 'missing'!r}"
        raise ApiError(415, message, code="unsupported_media_type")
    if encoding.lower() not in ("", "identity"):
        raise ApiError(415, f"the content encoding {encoding[:100]!r} is not supported", code="unsupported_media_type")


def _closing(error: ApiError) -> ApiError:
    """The rest of the body is still on its way: the connection cannot be used again."""
    error.headers["Connection"] = "close"
    return error


def _header(scope: Scope, name: bytes) -> str:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
