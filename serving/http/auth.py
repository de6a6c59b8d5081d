"""One API key for all clients."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from splitrank.serving.http.responses import error_response
from splitrank.serving.openai.errors import ApiError

OPEN_PATHS = ("/health", "/ready")  # for load balancers, which carry no key


class ApiKeyGuard:
    """Pure ASGI. 401 unless the request carries ``Authorization: Bearer <key>``."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_known(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        error = ApiError(
            401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
        return await error_response(error)(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Constant time: the answer's delay says nothing about how much of a key was right.
        return scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._api_key)
