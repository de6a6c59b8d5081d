"""Middleware around all routes: the API key, an error for a crash, request targets of proxies."""

import hmac
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitrank.serving.http.page_files import PAGE_FILES
from splitrank.serving.http.responses import error_response
from splitrank.serving.openai.errors import ApiError

# Load balancers have no key, and a browser has none until the page has asked its user.
OPEN_PATHS = ("/health", "/ready", *PAGE_FILES)
_log = logging.getLogger(__name__)


class ApiKeyGuard:
    """Pure ASGI. 401 unless the request carries ``Authorization: Bearer <key>`` or, as Anthropic's clients send it,
    ``X-Api-Key: <key>``, with one of ``api_keys``."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...]) -> None:
        self._app = app
        # Clients write letters beyond ASCII in either encoding; the environment may hold bytes that are neither.
        self._keys = {
            key.encode(encoding, "surrogateescape") for key in api_keys for encoding in ("utf-8", _encoding_of(key))
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_known(scope):
            return await self._app(scope, receive, send)
        error = ApiError(
            401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
        return await error_response(scope["path"], error)(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, key = _header(scope, b"authorization").partition(b" ")
        given = key if scheme.lower() == b"bearer" else _header(scope, b"x-api-key")
        # In constant time, so that the delay does not show how much of a key was right, nor which one it was.
        known = [hmac.compare_digest(given.strip(), own) for own in self._keys]
        return any(known)


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


def _encoding_of(api_key: str) -> str:
    """latin-1 where it has all letters of the key."""
    return "latin-1" if all(ord(letter) < 256 for letter in api_key) else "utf-8"


class CrashGuard:
    """Pure ASGI. A bug of ours ends its own request with 500, and is logged; the connection stays open.

    (Starlette would answer and raise again; then uvicorn closes the connection, which the answer did not announce.)
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started:
                raise  # the answer has begun: the closed connection shows that it is not whole
            # The client gets no details of the error.
            _log.error("%s %s failed", scope.get("method"), scope.get("path"), exc_info=error)
            failure = ApiError(500, "internal error", type="server_error", code="internal_error")
            answer = error_response(scope["path"], failure)
            await answer(scope, receive, send)


class OriginForm:
    """Pure ASGI. Clients of proxies write ``GET http://host/v1/models``; it means ``GET /v1/models``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].lower().startswith(("http://", "https://")):
            scope = {**scope, "path": "/" + scope["path"].partition("://")[2].partition("/")[2]}
            scope["raw_path"] = b"/" + scope["raw_path"].partition(b"://")[2].partition(b"/")[2]
        await self._app(scope, receive, send)
