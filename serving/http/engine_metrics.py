"""The engine's statistics as Prometheus metrics, read at each scrape. Names that begin with ``vllm:`` mean what they
mean in vLLM, so that dashboards and alerts of others fit; ours begin with ``splitrank_``."""

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from splitrank.serving.protocol.messages import QUEUE_TIME_BUCKETS_S, EngineStats

Reading = tuple[str, Callable[[EngineStats], float], str]

GAUGES: tuple[Reading, ...] = (
    ("vllm:num_requests_running", lambda stats: stats.num_running, "requests being computed"),
    (
        "vllm:num_requests_waiting",
        lambda stats: stats.num_waiting + stats.num_preempted,
        "requests that wait to be computed, swapped-out ones among them",
    ),
    (
        "vllm:kv_cache_usage_perc",
        lambda stats: 1 - stats.free_pages / max(stats.num_pages, 1),
        "share of the KV pages in use, from 0 to 1",
    ),
    ("splitrank_engine_num_preempted", lambda stats: stats.num_preempted, "requests swapped out"),
    ("splitrank_engine_free_pages", lambda stats: stats.free_pages, "free KV pages"),
    ("splitrank_engine_num_pages", lambda stats: stats.num_pages, "KV pages"),
    ("splitrank_engine_free_slots", lambda stats: stats.free_slots, "free recurrent-state slots"),
    ("splitrank_engine_num_slots", lambda stats: stats.num_slots, "recurrent-state slots"),
    ("splitrank_engine_num_stages", lambda stats: stats.num_stages, "pipeline stages"),
)
COUNTERS: tuple[Reading, ...] = (
    ("vllm:num_preemptions", lambda stats: stats.preemptions, "requests swapped out so far"),
    (
        "vllm:prefix_cache_queries",
        lambda stats: stats.prompt_tokens + stats.cached_tokens,
        "prompt tokens that were looked for in snapshots of shared prefixes",
    ),
    ("vllm:prefix_cache_hits", lambda stats: stats.cached_tokens, "prompt tokens that came from such snapshots"),
    ("splitrank_engine_steps", lambda stats: stats.steps, "steps computed"),
    (
        "splitrank_engine_aborts",
        lambda stats: stats.aborts,
        "choices whose clients have left, or that a stop string ended, so far",
    ),
    (
        "splitrank_stage_busy_seconds",
        lambda stats: stats.stage_busy_s,
        "stage-seconds that the steps in flight could fill: stages computed so long at most",
    ),
    (
        "splitrank_stage_bubble_seconds",
        lambda stats: stats.bubble_s,
        "stage-seconds without a step while other stages had one: stages waited so long at least",
    ),
)


class EngineCollector(Collector):
    """``stats`` returns None before the engine's first report; ``model`` is then of no interest."""

    def __init__(self, stats: Callable[[], EngineStats | None], model: Callable[[], str]) -> None:
        self._stats = stats
        self._model = model

    def collect(self) -> Iterator[Metric]:
        if (stats := self._stats()) is None:
            return
        model = self._model()
        for name, read, help in GAUGES:
            yield _labelled(GaugeMetricFamily(name, help, labels=_labels(name)), model, read(stats))
        for name, read, help in COUNTERS:
            yield _labelled(CounterMetricFamily(name, help, labels=_labels(name)), model, read(stats))
        yield _queue_times(model, stats)
        ages = GaugeMetricFamily(
            "splitrank_rank_heartbeat_age_seconds", "since the last heartbeat, at the engine's report", labels=["rank"]
        )
        for rank, one in enumerate(stats.ranks):
            ages.add_metric([str(rank)], one.heartbeat_age_s)
        yield ages


def _queue_times(model: str, stats: EngineStats) -> Metric:
    waited = HistogramMetricFamily(
        "vllm:request_queue_time_seconds",
        "a choice's arrival to the first step that computes it",
        labels=["model_name"],
    )
    counts = accumulate(stats.queue_time_counts or [0] * (len(QUEUE_TIME_BUCKETS_S) + 1))
    bounds = [*map(str, QUEUE_TIME_BUCKETS_S), "+Inf"]
    waited.add_metric([model], list(zip(bounds, counts, strict=True)), stats.queue_time_s)
    return waited


def _labels(name: str) -> list[str]:
    """vLLM's metrics name the model; its dashboards choose by that."""
    return ["model_name"] if name.startswith("vllm:") else []


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, model: str, value: float) -> Metric:
    family.add_metric([model] if family.name.startswith("vllm:") else [], value)
    return family
