"""``/metrics``: vLLM's names with vLLM's meanings, ours beside them, and the dashboard that asks for both."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from splitrank import __version__
from splitrank.serving.protocol.messages import EngineStats, RankStats
from tests.serving.http.test_api import CHAT
from tests.support.front_fakes import Front, refuse
from tests.support.http_helpers import serving

TIMES_OF_DECODING = ("decode_time", "time_per_output_token")
DASHBOARD = Path(__file__).parents[3] / "configs" / "grafana" / "splitrank.json"
STATS = EngineStats(
    num_running=1, num_waiting=2, num_preempted=3, free_pages=4, num_pages=5, free_slots=6, num_slots=7, steps=8,
    prompt_tokens=9, generated_tokens=10, preemptions=11, aborts=12, cached_tokens=27, uptime_s=9.0,
    num_stages=2, queue_time_counts=[3, *[0] * 15, 1, 1], queue_time_s=500.5,
    stage_busy_s=6.5, bubble_s=1.5, ranks=[RankStats(0.25, "serve", 7), RankStats(0.5, "step 8", 7)],
)  # fmt: skip


async def samples(front: Front) -> dict[str, float]:
    """Values by name and labels, as Prometheus reads them."""
    text = (await front.http.get("/metrics")).text
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_requests(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        assert (await samples(front))["vllm:generation_tokens_total model_name=tiny"] == 0  # a series begins at zero
        await front.http.post("/v1/chat/completions", json=CHAT)
        await front.http.post("/v1/chat/completions", json=CHAT | {"temperature": 3})
        await front.http.get("/strange")
        front.client.script = refuse("queue_full", "5 requests are waiting")
        await front.http.post("/v1/chat/completions", json=CHAT)
        found = await samples(front)
        expected = {
            "splitrank_http_requests_total path=/v1/chat/completions status=200": 1,
            "splitrank_http_requests_total path=/v1/chat/completions status=400": 1,
            "splitrank_http_requests_total path=/v1/chat/completions status=503": 1,
            "splitrank_http_requests_total path=other status=404": 1,
            "vllm:request_success_total finished_reason=stop model_name=tiny": 1,
            "vllm:request_success_total finished_reason=length model_name=tiny": 0,
            "vllm:request_success_total finished_reason=abort model_name=tiny": 0,
            "vllm:request_success_total finished_reason=error model_name=tiny": 1,
            "vllm:generation_tokens_total model_name=tiny": 5,
            "vllm:time_to_first_token_seconds_count model_name=tiny": 1,
            "vllm:inter_token_latency_seconds_count model_name=tiny": 4,
            "vllm:e2e_request_latency_seconds_count model_name=tiny": 2,
            "vllm:request_generation_tokens_sum model_name=tiny": 5,
            "vllm:request_decode_time_seconds_count model_name=tiny": 1,  # not of the one that was refused
            "vllm:request_time_per_output_token_seconds_count model_name=tiny": 1,
        }
        assert {name: found[name] for name in expected} == expected
        whole, each = (found[f"vllm:request_{name}_seconds_sum model_name=tiny"] for name in TIMES_OF_DECODING)
        assert math.isclose(whole, 4 * each)
        assert found["process_open_fds"] > 3
        [server] = [name for name in found if name.startswith("splitrank_server_info")]
        assert server.endswith(f" model_name=tiny version={__version__}")

    serving(tmp_path, work)


def test_metrics_of_the_engine(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        assert "splitrank_engine_num_pages" not in await samples(front)  # before the engine's first report
        front.client.stats = STATS
        found = await samples(front)
        expected = {
            "vllm:num_requests_running model_name=tiny": 1,
            "vllm:num_requests_waiting model_name=tiny": 5,
            "vllm:kv_cache_usage_perc model_name=tiny": 0.2,
            "vllm:num_preemptions_total model_name=tiny": 11,
            "vllm:prefix_cache_queries_total model_name=tiny": 36,
            "vllm:prefix_cache_hits_total model_name=tiny": 27,
            "vllm:request_queue_time_seconds_bucket le=0.001 model_name=tiny": 3,
            "vllm:request_queue_time_seconds_bucket le=120.0 model_name=tiny": 3,
            "vllm:request_queue_time_seconds_bucket le=300.0 model_name=tiny": 4,
            "vllm:request_queue_time_seconds_count model_name=tiny": 5,
            "vllm:request_queue_time_seconds_sum model_name=tiny": 500.5,
            "splitrank_engine_free_pages": 4,
            "splitrank_engine_steps_total": 8,
            "splitrank_stage_busy_seconds_total": 6.5,
            "splitrank_stage_bubble_seconds_total": 1.5,
            "splitrank_rank_heartbeat_age_seconds rank=0": 0.25,
            "splitrank_rank_heartbeat_age_seconds rank=1": 0.5,
        }
        assert {name: round(found[name], 9) for name in expected} == expected

    serving(tmp_path, work)


def test_prompt_tokens_are_counted_when_their_answer_begins(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        async def count() -> float:
            return (await samples(front))["vllm:prompt_tokens_total model_name=tiny"]

        answers = front.client.script
        front.client.script = refuse("queue_full", "5 requests are waiting")
        assert (await front.http.post("/v1/completions", json={"prompt": [1, 2, 3]})).status_code == 503
        assert await count() == 0
        front.client.script = answers
        assert (await front.http.post("/v1/completions", json={"prompt": [1, 2, 3], "n": 4})).status_code == 200
        assert await count() == 12

    serving(tmp_path, work)


def queries(value: Any) -> Iterator[str]:
    """Every expression and query of a dashboard, wherever it stands."""
    if isinstance(value, dict):
        yield from (text for key in ("expr", "query") if isinstance(text := value.get(key), str))
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from queries(part)


def test_the_dashboard_asks_for_metrics_and_labels_that_exist(tmp_path: Path) -> None:
    asked = list(queries(json.loads(DASHBOARD.read_text())))
    names = {name for query in asked for name in re.findall(r"\b(?:vllm:|splitrank_)\w+", query)}
    assert len(names) > 20

    async def work(front: Front) -> None:
        front.client.stats = STATS
        await front.http.post("/v1/chat/completions", json=CHAT)
        await front.http.get("/version")
        found = {name.partition(" ")[0]: name for name in await samples(front)}
        assert sorted(names - set(found)) == []
        for query in asked:
            for name, labels in re.findall(r"\b((?:vllm:|splitrank_)\w+)\{([^}]*)\}", query):
                for label in re.findall(r"(\w+)=", labels):
                    assert label == "job" or f" {label}=" in found[name], (name, label)

    serving(tmp_path, work)
