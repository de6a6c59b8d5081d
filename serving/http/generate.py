"""The POST routes: whole body in, one body or a stream of events out."""

import logging

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from splitrank.serving.http.bodies import Bodies, body_limit
from splitrank.serving.http.parsing import Parsing
from splitrank.serving.http.request_log import USAGE
from splitrank.serving.http.responses import ClientGoneError, EventStream, json_response, while_connected
from splitrank.serving.http.state import ServerState
from splitrank.serving.openai.parser import Parsed
from splitrank.serving.openai.requests import DirectAnswer, ParsedRequest
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.openai.usage import Usage

_log = logging.getLogger(__name__)


class GenerateEndpoint:
    """POST of one url. ``max_body_bytes`` 0: what the context needs."""

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

    async def route(self, request: Request) -> Response:
        return _Answer(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._state.admit() as service:
            try:
                request = await self._parse(service, scope, receive)
                if isinstance(request, DirectAnswer):
                    return await json_response(request.body)(scope, receive, send)
                await self._answer(service, request, scope, receive, send)
            except ClientGoneError:
                _log.debug("a client of %s hung up", self.url)

    async def _parse(self, service: OpenAIService, scope: Scope, receive: Receive) -> Parsed:
        limit = body_limit(self._max_body_bytes, service.info.max_model_len)
        async with self._bodies.read(scope, receive, limit) as body:
            return await while_connected(self._parsing.parse(service, self.url, body), receive, self._state)

    async def _answer(
        self, service: OpenAIService, request: ParsedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        usage = scope[USAGE] = Usage(request)
        if request.stream:
            events = service.stream_events(request, usage)
            await EventStream(self.url, scope, send, self._keep_alive_s).run(events, receive, self._state)
        else:
            body = await while_connected(service.complete(request, usage), receive, self._state)
            await json_response(body)(scope, receive, send)


class _Answer(Response):
    """What a route gives back to FastAPI: it reads the body and writes the answer itself, client in sight."""

    def __init__(self, endpoint: GenerateEndpoint) -> None:
        super().__init__()
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)
