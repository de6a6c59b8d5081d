"""The state of the server: loading, ready, draining, or dead."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from splitrank.serving.openai.errors import ApiError, unavailable
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.protocol.messages import EngineStats
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.text_engine import Client

Phase = Literal["loading", "ready", "draining", "dead"]
RETRY_AFTER_S = {"loading": 5, "draining": 1, "dead": 1}


class ServerState:
    """Loading, then ready, then draining or dead. Once ``stopped`` is done, open requests end with an error. To be made
    in the event loop that serves."""

    def __init__(self) -> None:
        self.phase: Phase = "loading"
        self.death: str | None = None  # why, once dead
        self.num_open = 0
        self.idle = asyncio.Event()  # set while no request is open
        self.idle.set()
        # Not an event: each request would need a task that waits for it.
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._service: OpenAIService | None = None
        self._client: Client | None = None

    def set_ready(self, service: OpenAIService, client: Client) -> None:
        self.phase, self._service, self._client = "ready", service, client

    def set_dead(self, reason: str) -> None:
        self.phase, self.death = "dead", reason

    @property
    def service(self) -> OpenAIService:
        """The service of a ready server; raises ``ApiError`` 503 otherwise."""
        if self.phase != "ready" or self._service is None:
            raise self.refusal()
        return self._service

    @property
    def info(self) -> ModelInfo | None:
        """Of the served model; None while it loads."""
        return None if self._service is None else self._service.info

    @property
    def reports(self) -> list[str]:
        """The lines of the start: one a rank, in rank order, then others."""
        return [] if self._client is None else self._client.reports

    def stats(self) -> EngineStats | None:
        """The engine's latest report."""
        return None if self._client is None else self._client.stats

    @contextmanager
    def admit(self) -> Iterator[OpenAIService]:
        """Counts a request as open. Raises ``ApiError`` 503 unless ready."""
        service = self.service
        self.num_open += 1
        self.idle.clear()
        try:
            yield service
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self.idle.set()

    def refusal(self) -> ApiError:
        """The error for new requests, or for those that are still open."""
        message = {
            "loading": "the model is still loading",
            "draining": "the server is shutting down",
            "dead": f"the engine is dead: {self.death}",
            "ready": "the server is stopping",
        }[self.phase]
        return unavailable(message, f"engine_{self.phase}", RETRY_AFTER_S.get(self.phase, 1))
