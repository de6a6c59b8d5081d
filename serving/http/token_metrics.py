"""Metrics of single tokens: numbers of our own, shown at a scrape. prometheus-client's locks and its search for the
bucket took 4 % of the front's time for a token; the other metrics change once a request."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
_BOUNDS = [*map(str, TOKEN_BUCKETS_S), "+Inf"]


class TokenMetrics(Collector):
    """Of one model, in one thread."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._num_tokens = 0
        self._counts = [0] * len(_BOUNDS)  # by bucket, not cumulative
        self._sum_s = 0.0

    def add_first(self, count: int) -> None:
        """The first ``count`` tokens of a choice."""
        self._num_tokens += count

    def add(self, count: int, seconds: float) -> None:
        """``count`` tokens came together, ``seconds`` after the one before; they share the time."""
        self._num_tokens += count
        self._counts[bisect_left(TOKEN_BUCKETS_S, seconds / count)] += count
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        generated = CounterMetricFamily(
            "vllm:generation_tokens", "tokens generated, of all choices", labels=["model_name"]
        )
        generated.add_metric([self._model], self._num_tokens)
        yield generated
        gaps = HistogramMetricFamily("vllm:inter_token_latency_seconds", "one token to the next", labels=["model_name"])
        gaps.add_metric([self._model], list(zip(_BOUNDS, accumulate(self._counts), strict=True)), self._sum_s)
        yield gaps
