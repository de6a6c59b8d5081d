"""``splitrank bench`` of the demo: one JSON line a workload, with figures that a person can read."""

import json

import pytest

from splitrank.serving.bench import BenchConfig, run_bench


def test_a_line_a_workload(capsys: pytest.CaptureFixture[str]) -> None:
    config = BenchConfig(concurrency=(1, 2), prompt_tokens=8, output_tokens=4, rounds=1, max_running_requests=2)
    assert run_bench(config) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["concurrency"], line["output_tokens"]) for line in lines] == [(1, 4), (2, 8)]
    for line in lines:
        assert line["seconds"] > line["first_token_s"] > 0
        assert line["tokens_per_second"] == pytest.approx(line["output_tokens"] / line["seconds"], rel=1e-4)
        figures = (f"{value}".replace(".", "").lstrip("0") for value in line.values() if isinstance(value, float))
        assert max(map(len, figures)) <= 5
