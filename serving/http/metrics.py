"""Prometheus metrics of requests, in a registry of their own with the engine's (``engine_metrics``)."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitrank import __version__
from splitrank.serving.http.engine_metrics import EngineCollector
from splitrank.serving.http.token_metrics import TOKEN_BUCKETS_S, TokenMetrics
from splitrank.serving.protocol.messages import EngineStats
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.detokenizer import PLAIN_TEXT, TextForm
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.text_engine import TextOutput, TextSource
from splitrank.serving.text.tokenizer import Tokenizer

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
FINISH_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """``stats`` is called at each scrape; it returns None before the engine's first report. ``model``: the served name,
    once there is one."""

    def __init__(self, stats: Callable[[], EngineStats | None], model: Callable[[], str]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(stats, model))
        ProcessCollector(registry=self.registry)  # of the front: its start, memory and open files
        self.requests = Counter(
            "splitrank_http_requests", "answered requests", ["path", "status"], registry=self.registry
        )
        self.finished = Counter(
            "vllm:request_success",
            "choices that have ended, by reason: stop, length, abort or error",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "prompt tokens of choices that began to be answered; n choices of one prompt count n times"
        )
        self.first_token = self._histogram("time_to_first_token_seconds", "request to first token", LATENCY_BUCKETS_S)
        self.duration = self._histogram("e2e_request_latency_seconds", "request to its end", LATENCY_BUCKETS_S)
        self.decode = self._histogram("request_decode_time_seconds", "first token to the last one", LATENCY_BUCKETS_S)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "that time a token, of choices of two tokens at least",
            TOKEN_BUCKETS_S,
        )
        self.prompt_length = self._histogram("request_prompt_tokens", "prompt tokens of a choice", LENGTHS)
        self.answer_length = self._histogram("request_generation_tokens", "generated tokens of a choice", LENGTHS)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"vllm:{name}", help, ["model_name"], registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", help, ["model_name"], registry=self.registry, buckets=buckets)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model. Its series begin at zero, before there is anything to count."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.finished = {reason: metrics.finished.labels(model, reason) for reason in FINISH_REASONS}
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.tokens = TokenMetrics(model)
        metrics.registry.register(self.tokens)
        self.first_token = metrics.first_token.labels(model)
        self.duration = metrics.duration.labels(model)
        self.decode = metrics.decode.labels(model)
        self.per_token = metrics.per_token.labels(model)
        self.prompt_length = metrics.prompt_length.labels(model)
        self.answer_length = metrics.answer_length.labels(model)


class ChoiceMeter:
    """What one choice adds to the metrics."""

    def __init__(self, metrics: ModelMetrics, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._start = self._first = self._last = time.monotonic()

    def tokens(self, count: int) -> None:
        """``count`` tokens have just come."""
        now, metrics = time.monotonic(), self._metrics
        if self._num_tokens:
            metrics.tokens.add(count, now - self._last)
        else:
            self._first = now
            metrics.prompt_tokens.inc(self._num_prompt_tokens)
            metrics.first_token.observe(now - self._start)
            metrics.tokens.add_first(count)
        self._num_tokens += count
        self._last = now

    def end(self, reason: str) -> None:
        self._metrics.finished[reason].inc()
        self._metrics.duration.observe(time.monotonic() - self._start)
        if self._num_tokens:
            self._metrics.decode.observe(self._last - self._first)
        if self._num_tokens > 1:
            self._metrics.per_token.observe((self._last - self._first) / (self._num_tokens - 1))
        self._metrics.prompt_length.observe(self._num_prompt_tokens)
        self._metrics.answer_length.observe(self._num_tokens)


class MeteredEngine:
    """A ``TextSource`` that measures another one."""

    def __init__(self, engine: TextSource, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = ModelMetrics(metrics, engine.info.name)
        served = {"version": __version__, "model_name": engine.info.name, "fingerprint": engine.info.fingerprint}
        Info("splitrank_server", "what is served", registry=metrics.registry).info(served)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    async def stream(
        self, prompt_token_ids: list[int], params: SamplingParams, form: TextForm = PLAIN_TEXT
    ) -> AsyncGenerator[TextOutput, None]:
        """Measures and passes on the outputs. A choice that does not finish counts as ``abort``."""
        meter, reason = ChoiceMeter(self._metrics, len(prompt_token_ids)), "abort"
        try:
            async with aclosing(self._engine.stream(prompt_token_ids, params, form)) as outputs:
                async for output in outputs:
                    if output.token_ids:
                        meter.tokens(len(output.token_ids))
                    reason = output.finish_reason or reason
                    yield output
        except Exception:
            reason = "error"
            raise
        finally:
            meter.end(reason)


class CountRequests:
    """Pure ASGI: counts answers by path and status. Unknown paths share one label."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        return await self._app(scope, receive, counted)
