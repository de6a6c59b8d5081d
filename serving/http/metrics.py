"""Prometheus metrics in a registry of their own."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitrank.serving.protocol.messages import EngineStats
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.detokenizer import PLAIN_TEXT, TextForm
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.text_engine import TextOutput, TextSource
from splitrank.serving.text.tokenizer import Tokenizer

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
GAUGES = {
    "num_running": "requests being computed",
    "num_waiting": "requests waiting",
    "num_preempted": "requests swapped out",
    "free_pages": "free KV pages",
    "num_pages": "KV pages",
    "free_slots": "free recurrent-state slots",
    "num_slots": "recurrent-state slots",
}
COUNTERS = {
    "steps": "steps computed",
    "cached_tokens": "tokens of prompts that came from snapshots of shared prefixes",
    "preemptions": "requests swapped out so far",
    "aborts": "requests aborted so far",
}


class Metrics:
    """``stats`` is called at each scrape; it returns None before the engine's first report."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats))
        self.requests = Counter(
            "splitrank_http_requests", "answered requests", ["path", "status"], registry=self.registry
        )
        self.generations = Counter(
            "splitrank_generations", "finished choices", ["finish_reason"], registry=self.registry
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "prompt tokens of choices that began to be answered; n choices of one prompt count n times"
        )
        self.generated_tokens = self._counter("generated_tokens", "tokens generated, of all choices")
        self.first_token = self._histogram("time_to_first_token", "request to first token", LATENCY_BUCKETS_S)
        self.inter_token = self._histogram("inter_token_latency", "one token to the next", TOKEN_BUCKETS_S)
        self.duration = self._histogram("generation_duration", "request to last token", LATENCY_BUCKETS_S)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"splitrank_{name}", help, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"splitrank_{name}_seconds", help, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        if (stats := self._stats()) is None:
            return
        for name, help in GAUGES.items():
            yield GaugeMetricFamily(f"splitrank_engine_{name}", help, value=getattr(stats, name))
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(f"splitrank_engine_{name}", help, value=getattr(stats, name))


class MeteredEngine:
    """A ``TextSource`` that measures another one."""

    def __init__(self, engine: TextSource, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    async def stream(
        self, prompt_token_ids: list[int], params: SamplingParams, form: TextForm = PLAIN_TEXT
    ) -> AsyncGenerator[TextOutput, None]:
        """Measures and passes on the outputs. A choice that does not finish counts as ``aborted``."""
        metrics, reason = self._metrics, "aborted"
        start = last = time.monotonic()
        try:
            async with aclosing(self._engine.stream(prompt_token_ids, params, form)) as outputs:
                async for output in outputs:
                    now = time.monotonic()
                    if output.token_ids:
                        if last == start:
                            metrics.prompt_tokens.inc(len(prompt_token_ids))
                            metrics.first_token.observe(now - last)
                        else:
                            for _ in output.token_ids:  # several that came together share the time
                                metrics.inter_token.observe((now - last) / len(output.token_ids))
                        metrics.generated_tokens.inc(len(output.token_ids))
                        last = now
                    reason = output.finish_reason or reason
                    yield output
        except Exception:
            reason = "error"
            raise
        finally:
            metrics.generations.labels(reason).inc()
            metrics.duration.observe(time.monotonic() - start)


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
