"""The document at /openapi.json: FastAPI's, with the msgspec types that parse bodies and describe answers."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from splitrank import __version__
from splitrank.serving.openai import answers, types

_REF = "#/components/schemas/{name}"
_TYPES: tuple[type[Any], ...] = (
    types.ChatBody,
    types.CompletionBody,
    answers.ChatCompletion,
    answers.ChatCompletionChunk,
    answers.Completion,
    answers.CompletionChunk,
    answers.Model,
    answers.ModelList,
    answers.Status,
    answers.Error,
)
ERRORS = {
    400: "Something in the request is wrong, or not supported; `param` names it.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    500: "The request failed alone: a bug, or numbers of the model that are none.",
    503: "Not now: loading, full, draining or dead.",
}
Documentation = dict[str, Any]  # arguments of FastAPI's add_api_route


def documented(app: FastAPI) -> None:
    """``app.openapi()`` gives the whole document."""
    whole: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not whole:
            whole.update(_document(app))
        return whole

    app.openapi = openapi  # type: ignore[method-assign]


def getting(answer: type[Any] | str, summary: str, *errors: int) -> Documentation:
    """A GET route. ``answer``: a type, or a media type."""
    content = {answer: {"schema": {"type": "string"}}} if isinstance(answer, str) else _json(answer)
    return _route(summary, content, errors)


def posting(body: type[Any], answer: type[Any], summary: str, chunk: type[Any] | None = None) -> Documentation:
    """A POST route; ``chunk`` is an event of its stream."""
    content = _json(answer)
    if chunk is not None:
        content["text/event-stream"] = {"schema": _reference(chunk)}
    documentation = _route(summary, content, tuple(ERRORS))
    documentation["openapi_extra"]["requestBody"] = {"required": True, "content": _json(body)}
    return documentation


def path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _route(summary: str, content: dict[str, Any], errors: tuple[int, ...]) -> Documentation:
    responses: dict[int, Any] = {200: {"description": "The answer.", "content": content}}
    for status in errors:
        responses[status] = {"description": ERRORS[status], "content": _json(answers.Error)}
    return {"summary": summary, "responses": responses, "openapi_extra": {}}


def _json(kind: type[Any]) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(kind)}}


def _reference(kind: type[Any]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title="splitrank", version=__version__, routes=app.routes)
    _, components = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    bearer = {"type": "http", "scheme": "bearer", "description": "if the server has an API key"}
    document["components"] = {"schemas": components, "securitySchemes": {"key": bearer}}
    document["security"] = [{}, {"key": []}]
    return document
