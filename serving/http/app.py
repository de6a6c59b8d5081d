"""The ASGI app: its routes, and around them metrics, crash guard and API key."""

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from splitrank.serving.http.bodies import Bodies, body_limit
from splitrank.serving.http.guards import ApiKeyGuard, CrashGuard, OriginForm
from splitrank.serving.http.metrics import CountRequests, Metrics
from splitrank.serving.http.parsing import Parsing
from splitrank.serving.http.responses import (
    ClientGoneError,
    EventStream,
    error_response,
    json_response,
    while_connected,
)
from splitrank.serving.http.state import ServerState
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, ParsedRequest
from splitrank.serving.openai.service import OpenAIService

_log = logging.getLogger(__name__)


def create_app(
    state: ServerState,
    metrics: Metrics,
    parsing: Parsing,
    *,
    created: int,
    api_key: str,
    max_body_bytes: int,
    body_timeout_s: float,
    keep_alive_s: float,
) -> ASGIApp:
    """The ASGI app. ``created`` is the Unix time shown in /v1/models; with an empty ``api_key`` everybody may ask."""
    routes = _Routes(state, metrics, created)
    bodies = Bodies(body_timeout_s)
    endpoints = [
        GenerateEndpoint(url, state, bodies, parsing, max_body_bytes, keep_alive_s)
        for url in (CHAT_URL, COMPLETIONS_URL)
    ]
    table = [
        Route("/health", routes.health),
        Route("/ready", routes.ready),
        Route("/metrics", routes.metrics),
        Route("/v1/models", routes.models),
        Route("/v1/models/{model:path}", routes.model),
        *(Route(endpoint.url, endpoint, methods=["POST"]) for endpoint in endpoints),
    ]
    middleware = [Middleware(CrashGuard)]
    if api_key:
        middleware.append(Middleware(ApiKeyGuard, api_key=api_key))
    app = Starlette(
        routes=table,
        middleware=middleware,
        exception_handlers={ApiError: _handle_api_error, HTTPException: _handle_http_exception},
    )
    app.router.redirect_slashes = False
    return OriginForm(CountRequests(app, metrics, frozenset(route.path for route in table)))


class GenerateEndpoint:
    """POST of one of the two generating urls: reads the whole body, answers with one body or a stream of events."""

    def __init__(
        self,
        url: str,
        state: ServerState,
        bodies: Bodies,
        parsing: Parsing,
        max_body_bytes: int,
        keep_alive_s: float,
    ) -> None:
        self.url = url
        self._state = state
        self._bodies = bodies
        self._parsing = parsing
        self._max_body_bytes = max_body_bytes
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._state.admit() as service:
            try:
                request = await self._parse(service, scope, receive)
                await self._answer(service, request, scope, receive, send)
            except ClientGoneError:
                _log.debug("a client of %s hung up", self.url)

    async def _parse(self, service: OpenAIService, scope: Scope, receive: Receive) -> ParsedRequest:
        limit = body_limit(self._max_body_bytes, service.info.max_model_len)
        async with self._bodies.read(scope, receive, limit) as body:
            return await while_connected(self._parsing.parse(service, self.url, body), receive, self._state)

    async def _answer(
        self, service: OpenAIService, request: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if request.stream:
            events = service.stream_events(request)
            await EventStream(send, self._keep_alive_s).run(events, receive, self._state)
        else:
            body = await while_connected(service.complete(request), receive, self._state)
            await json_response(body)(scope, receive, send)


class _Routes:
    """The small GET routes."""

    def __init__(self, state: ServerState, metrics: Metrics, created: int) -> None:
        self._state = state
        self._metrics = metrics
        self._created = created

    async def health(self, request: Request) -> Response:
        """200 while the engine runs or loads."""
        if self._state.phase == "dead":
            raise self._state.refusal()
        return json_response({"status": "ok", "phase": self._state.phase})

    async def ready(self, request: Request) -> Response:
        """200 while requests are accepted."""
        if self._state.phase != "ready":
            raise self._state.refusal()
        return json_response({"status": "ready", "model": self._state.service.info.name})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model(self._state.service)]})

    async def model(self, request: Request) -> Response:
        service = self._state.service
        service.check_model(request.path_params["model"])
        return json_response(self._model(service))

    def _model(self, service: OpenAIService) -> dict[str, object]:
        return {
            "id": service.info.name,
            "object": "model",
            "created": self._created,
            "owned_by": "splitrank",
            "max_model_len": service.info.max_model_len,
        }


async def _handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})))
