"""The document at /openapi.json: FastAPI's, with the msgspec types that parse bodies and describe answers."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from splitrank import __version__
from splitrank.serving.openai.answers import Error

_REF = "#/components/schemas/{name}"
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


class ApiDocument:
    """What the routes say of themselves; it remembers the types that they name."""

    def __init__(self) -> None:
        self._types: dict[str, type[Any]] = {}
        self._whole: dict[str, Any] = {}

    def getting(self, answer: type[Any] | str, summary: str, *errors: int) -> Documentation:
        """A GET route. ``answer``: a type, or a media type."""
        content = {answer: {"schema": {"type": "string"}}} if isinstance(answer, str) else self._json(answer)
        return self._route(summary, content, errors)

    def posting(
        self,
        body: type[Any],
        answer: type[Any],
        summary: str,
        chunk: type[Any] | None = None,
        error: type[Any] = Error,
    ) -> Documentation:
        """A POST route; ``chunk`` is an event of its stream."""
        content = self._json(answer)
        if chunk is not None:
            content["text/event-stream"] = {"schema": self._event(chunk)}
        documentation = self._route(summary, content, tuple(ERRORS), error)
        documentation["openapi_extra"]["requestBody"] = {"required": True, "content": self._json(body)}
        return documentation

    def attach(self, app: FastAPI) -> None:
        """``app.openapi()`` gives the whole document, made when it is first asked for."""

        def openapi() -> dict[str, Any]:
            if not self._whole:
                self._whole = self._make(app)
            return self._whole

        app.openapi = openapi  # type: ignore[method-assign]

    def _route(
        self, summary: str, content: dict[str, Any], errors: tuple[int, ...], error: type[Any] = Error
    ) -> Documentation:
        responses: dict[int, Any] = {200: {"description": "The answer.", "content": content}}
        for status in errors:
            responses[status] = {"description": ERRORS[status], "content": self._json(error)}
        return {"summary": summary, "responses": responses, "openapi_extra": {}}

    def _event(self, chunk: type[Any]) -> dict[str, Any]:
        """One event of a stream."""
        whole = {"type": "string", "contentMediaType": "application/json", "contentSchema": self._reference(chunk)}
        properties = {"event": {"type": "string"}, "data": {"anyOf": [{"const": "[DONE]"}, whole]}}
        return {"type": "object", "required": ["data"], "properties": properties}

    def _json(self, kind: type[Any]) -> dict[str, Any]:
        return {"application/json": {"schema": self._reference(kind)}}

    def _reference(self, kind: type[Any]) -> dict[str, str]:
        known = self._types.setdefault(kind.__name__, kind)
        assert known is kind, f"two types are called {kind.__name__}"
        return {"$ref": _REF.format(name=kind.__name__)}

    def _make(self, app: FastAPI) -> dict[str, Any]:
        document = get_openapi(title=app.title, version=__version__, routes=app.routes)
        _, components = msgspec.json.schema_components(self._types.values(), ref_template=_REF)
        bearer = {"type": "http", "scheme": "bearer", "description": "if the server has an API key"}
        document["components"] = {"schemas": components, "securitySchemes": {"key": bearer}}
        document["security"] = [{}, {"key": []}]
        return document


def path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
