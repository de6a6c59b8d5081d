"""``splitrank serve``: bind, load, serve, drain, end."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, nullcontext
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from splitrank.serving.http.app import create_app
from splitrank.serving.http.connection_limit import connection_limit
from splitrank.serving.http.listener import bind
from splitrank.serving.http.metrics import MeteredEngine, Metrics
from splitrank.serving.http.parsing import Parsing
from splitrank.serving.http.protocol import limited_protocol
from splitrank.serving.http.request_log import WithRequestId
from splitrank.serving.http.responses import KEEP_ALIVE_S
from splitrank.serving.http.state import ServerState
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.options.config import ServeConfig, api_keys
from splitrank.serving.text.text_engine import TextEngine, start_text_engine

StartEngine = Callable[[ServeConfig, str], Awaitable[TextEngine]]

LAST_ANSWERS_S = 2.0  # for errors to reach the clients of a dead or stopped engine
CONNECTIONS_CLOSE_S = 3


async def serve(
    config: ServeConfig, start_engine: StartEngine = start_text_engine, keep_alive_s: float = KEEP_ALIVE_S
) -> int:
    """Serves until a signal (exit code 0) or the death of the engine (1).

    The port is bound before the model loads. Raises ``ValueError`` or ``EngineStartError``, one line for the user.
    """
    settings = ApiSettings.of(config)
    max_connections = connection_limit(config.max_connections)
    listener = bind(config.host, config.port)
    with closing(listener), _stop_signals() as stop:
        _configure_logging(config.log_level)
        state = ServerState()
        metrics = Metrics(state.stats, lambda: state.info.name if state.info else "")
        async with aclosing(Parsing(config.log_level)) as parsing:
            app = _app(config, state, metrics, parsing, keep_alive_s)
            async with _http_server(app, listener, config, max_connections) as http:
                engine = await _unless(stop.first, start_engine(config, config.served_model_name))
                if engine is None:
                    return 0  # asked to stop while loading
                try:
                    service = OpenAIService(MeteredEngine(engine, metrics), settings)
                    state.set_ready(service, engine.client)
                    _announce(engine, listener, config.host)
                    return await _until_end(engine, state, stop, http, config.drain_timeout_s)
                finally:
                    # The engine first, so that its processes end even if connections hang; then the HTTP server.
                    state.stopped.set_result(None)
                    await _wait_any(LAST_ANSWERS_S, state.idle.wait())
                    await engine.close()


async def _until_end(
    engine: TextEngine, state: ServerState, stop: "StopSignals", http: "asyncio.Task[None]", drain_timeout_s: float
) -> int:
    died = engine.client.died
    await _wait_any(None, died.wait(), stop.first.wait(), asyncio.shield(http))
    if not died.is_set() and stop.first.is_set():
        state.phase = "draining"
        _say(f"draining: {state.num_open} open requests get {drain_timeout_s:g} s")
        await _wait_any(drain_timeout_s, state.idle.wait(), stop.second.wait(), died.wait())
    if died.is_set():
        state.set_dead(engine.client.death or "no reason given")
        _say(f"the engine is dead: {state.death}")
        await _wait_any(LAST_ANSWERS_S, state.idle.wait())
        return 1
    return 0 if stop.first.is_set() else 1


# ------------------------------------------------------------------ HTTP server


def _app(config: ServeConfig, state: ServerState, metrics: Metrics, parsing: Parsing, keep_alive_s: float) -> ASGIApp:
    return create_app(
        state,
        metrics,
        parsing,
        created=int(time.time()),
        api_keys=api_keys(config),
        allowed_origins=config.allowed_origins,
        max_body_bytes=config.max_body_bytes,
        body_timeout_s=config.body_timeout_s,
        keep_alive_s=keep_alive_s,
    )


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would refuse connections at once and exit by the signal."""

    def capture_signals(self) -> Any:
        return nullcontext()


@asynccontextmanager
async def _http_server(
    app: ASGIApp, listener: socket.socket, config: ServeConfig, max_connections: int
) -> AsyncIterator["asyncio.Task[None]"]:
    """Runs the HTTP server, also while the model loads. At the end, open connections have a few seconds."""
    server = _Uvicorn(
        uvicorn.Config(
            app,
            http=limited_protocol(config.send_timeout_s, max_connections),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,  # ours has more to say (request_log.py)
            server_header=False,
            headers=[("Keep-Alive", f"timeout={int(config.keep_alive_timeout_s)}")],
            timeout_keep_alive=config.keep_alive_timeout_s,  # type: ignore[arg-type]  # asyncio takes a float
            timeout_graceful_shutdown=CONNECTIONS_CLOSE_S,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield task
    finally:
        server.should_exit = True
        await task


# ------------------------------------------------------------------ signals and waiting


class StopSignals:
    """SIGTERM and SIGINT: the first one starts to drain, the second one ends the server at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def receive(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextmanager
def _stop_signals() -> Iterator[StopSignals]:
    stop, loop = StopSignals(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.receive)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _wait_any(timeout_s: float | None, *conditions: Awaitable[Any]) -> None:
    """Waits until one of them is done, or until the time is over."""
    waits = {asyncio.ensure_future(condition) for condition in conditions}
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _unless(stop: asyncio.Event, start: Awaitable[TextEngine]) -> TextEngine | None:
    """The result of a start; None if ``stop`` is set first, and the start is cancelled."""
    task = asyncio.ensure_future(start)
    try:
        await _wait_any(None, asyncio.shield(task), stop.wait())
        return task.result() if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# ------------------------------------------------------------------ messages for the operator


def _configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(WithRequestId())
    logging.basicConfig(
        handlers=[handler], level=level.upper(), format="%(asctime)s %(levelname)s %(name)s:%(request)s %(message)s"
    )
    if level != "debug":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its start and stop lines repeat ours


def _announce(engine: TextEngine, listener: socket.socket, host: str) -> None:
    for report in engine.client.reports:
        _say(report)
    info = engine.info
    defaults = ", ".join(f"{name} {value:g}" for name, value in info.defaults.items()) or "OpenAI's"
    _say(f"context {info.max_model_len} tokens; sampling defaults: {defaults}; fingerprint {info.fingerprint}")
    address = f"[{host}]" if ":" in host else host
    # The only line on stdout. With port 0, programs read the address from it.
    print(f"serving {info.name} on http://{address}:{listener.getsockname()[1]}", flush=True)


def _say(line: str) -> None:
    print(f"splitrank serve: {line}", file=sys.stderr, flush=True)
