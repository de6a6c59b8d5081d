"""The small routes: life, version, models, metrics."""

from starlette.requests import Request
from starlette.responses import Response

from splitrank import __version__
from splitrank.serving.http.metrics import Metrics
from splitrank.serving.http.responses import json_response
from splitrank.serving.http.state import ServerState
from splitrank.serving.http.statistics import statistics
from splitrank.serving.openai.service import OpenAIService

METRICS_TYPE = "text/plain; version=0.0.4"


class SmallRoutes:
    """``created`` is the Unix time shown in /v1/models."""

    def __init__(self, state: ServerState, metrics: Metrics, created: int) -> None:
        self._state = state
        self._metrics = metrics
        self._created = created

    async def health(self, request: Request) -> Response:
        """200 while the engine lives or loads."""
        if self._state.phase == "dead":
            raise self._state.refusal()
        return json_response({"status": "ok", "phase": self._state.phase})

    async def ready(self, request: Request) -> Response:
        """200 while requests are taken."""
        if self._state.phase != "ready":
            raise self._state.refusal()
        return json_response({"status": "ready", "model": self._state.service.info.name})

    async def version(self, request: Request) -> Response:
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=METRICS_TYPE)

    async def stats(self, request: Request) -> Response:
        """200 in every phase: it tells of loading and death, too."""
        return json_response(statistics(self._state))

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
