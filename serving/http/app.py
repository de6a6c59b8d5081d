"""The FastAPI app: routes and their order (count, check the key, read the body, answer), and errors as error objects.

All middleware is pure ASGI: one ``@app.middleware("http")`` would hide for ever that a client hung up. Bodies are read
by strict parsers of our own, so FastAPI validates nothing, and nothing is 422.
"""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from splitrank import __version__
from splitrank.serving.http.bodies import Bodies
from splitrank.serving.http.generate import GenerateEndpoint
from splitrank.serving.http.guards import ApiKeyGuard, CrashGuard, OriginForm
from splitrank.serving.http.metrics import CountRequests, Metrics
from splitrank.serving.http.openapi import ApiDocument, Documentation, path_parameter
from splitrank.serving.http.page_files import PAGE_FILES, PageFile
from splitrank.serving.http.parsing import Parsing
from splitrank.serving.http.request_log import REFUSAL, RequestLog
from splitrank.serving.http.responses import error_response
from splitrank.serving.http.routes import METRICS_TYPE, SmallRoutes
from splitrank.serving.http.state import ServerState
from splitrank.serving.http.statistics import Statistics
from splitrank.serving.openai import answers, tokens, types
from splitrank.serving.openai.dialects import MESSAGES_URL, RESPONSES_URL
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.messages.types import CountBody, MessageBody
from splitrank.serving.openai.messages.types_of_answers import CountedTokens, MessageAnswer, MessageError, MessageEvent
from splitrank.serving.openai.parser import (
    CHAT_URL,
    COMPLETIONS_URL,
    COUNT_TOKENS_URL,
    DETOKENIZE_URL,
    TOKENIZE_URL,
)
from splitrank.serving.openai.responses import types_of_answers as response_answers
from splitrank.serving.openai.responses.types import ResponseBody

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    state: ServerState,
    metrics: Metrics,
    parsing: Parsing,
    *,
    created: int,
    api_keys: tuple[str, ...],
    allowed_origins: tuple[str, ...],
    max_body_bytes: int,
    body_timeout_s: float,
    keep_alive_s: float,
) -> ASGIApp:
    """The ASGI app. ``created`` is the Unix time shown in /v1/models; without ``api_keys`` everybody may ask."""
    middleware = [Middleware(CrashGuard)]
    if allowed_origins:  # around all others: a browser asks first without a key, and reads errors only with its headers
        middleware.insert(0, _cors(allowed_origins))
    if api_keys:
        middleware.append(Middleware(ApiKeyGuard, api_keys=api_keys))
    app = FastAPI(
        title="splitrank",
        version=__version__,
        docs_url=None,  # FastAPI's page loads its scripts from another host; ours is one of PAGE_FILES
        redoc_url=None,
        redirect_slashes=False,
        middleware=middleware,
        exception_handlers={ApiError: _handle_api_error, HTTPException: _handle_http_exception},
    )
    document, bodies = ApiDocument(), Bodies(body_timeout_s)
    for url, documentation in _posting(document).items():  # first: a request's route is sought one by one
        endpoint = GenerateEndpoint(url, state, bodies, parsing, max_body_bytes, keep_alive_s)
        _add(app, url, endpoint.route, documentation, method="POST")
    _add_small_routes(app, SmallRoutes(state, metrics, created), document)
    for path, file in PAGE_FILES.items():
        _add(app, path, PageFile(*file).route, {"include_in_schema": False})
    document.attach(app)
    paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
    return RequestLog(OriginForm(CountRequests(app, metrics, paths)))


def _cors(origins: tuple[str, ...]) -> Middleware:
    """Keys come in headers, so no credentials of the browser are allowed."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("X-Request-Id", "Retry-After"),
    )


def _posting(document: ApiDocument) -> dict[str, Documentation]:
    """The POST routes by url."""
    chat = document.posting(
        types.ChatBody, answers.ChatCompletion, "Answers a conversation", chunk=answers.ChatCompletionChunk
    )
    completion = document.posting(
        types.CompletionBody, answers.Completion, "Continues texts", chunk=answers.CompletionChunk
    )
    response = document.posting(
        ResponseBody,
        response_answers.Response,
        "Answers a conversation, in the form of items",
        chunk=response_answers.ResponseEvent,
    )
    message = document.posting(
        MessageBody,
        MessageAnswer,
        "Answers a conversation, in Anthropic's form",
        chunk=MessageEvent,
        error=MessageError,
    )
    count = document.posting(CountBody, CountedTokens, "Tokens of a message's prompt", error=MessageError)
    return {
        CHAT_URL: chat,
        RESPONSES_URL: response,
        MESSAGES_URL: message,
        COUNT_TOKENS_URL: count,
        COMPLETIONS_URL: completion,
        TOKENIZE_URL: document.posting(tokens.TokenizeBody, answers.Tokens, "Tokens of a text or a conversation"),
        DETOKENIZE_URL: document.posting(tokens.DetokenizeBody, answers.Detokenized, "Text of tokens"),
    }


def _add_small_routes(app: FastAPI, routes: SmallRoutes, document: ApiDocument) -> None:
    getting = document.getting
    _add(app, "/health", routes.health, getting(answers.Status, "Whether the engine lives, or loads", 503))
    _add(app, "/ready", routes.ready, getting(answers.Status, "Whether requests are taken", 503))
    _add(app, "/version", routes.version, getting(answers.Version, "This server's version", 401))
    _add(app, "/metrics", routes.metrics, getting(METRICS_TYPE, "Prometheus metrics", 401))
    _add(
        app, "/stats", routes.stats, getting(Statistics, "State, ranks and the engine's statistics, for the page", 401)
    )
    _add(app, "/v1/models", routes.models, getting(answers.ModelList, "The served model", 401, 503))
    one = getting(answers.Model, "The served model, by its name", 401, 404, 503)
    one["openapi_extra"]["parameters"] = [path_parameter("model")]
    _add(app, "/v1/models/{model:path}", routes.model, one)


def _add(app: FastAPI, path: str, handler: Handler, documentation: Documentation, method: str = "GET") -> None:
    app.add_api_route(path, handler, methods=[method], response_class=Response, operation_id=path, **documentation)
    if method == "GET":
        app.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False)


async def _handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.scope[REFUSAL] = error.message
    return error_response(request.url.path, error)


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    message = f"{request.method} {request.url.path}: {error.detail}"
    refusal = ApiError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    return error_response(request.url.path, refusal)
