"""The picture of the README is what the program draws of the committed rows."""

import json
from pathlib import Path

import pytest

from scripts import plot_perf
from scripts.plot_perf import PERF, draw, read_pairs

ROWS = PERF / "engine_h200.jsonl"


def test_the_committed_picture_is_of_the_committed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["plot_perf", "--out", str(tmp_path / "new.svg")])
    assert plot_perf.main() == 0
    assert (tmp_path / "new.svg").read_text() == ROWS.with_suffix(".svg").read_text()


def test_pairs_are_the_first_rows_of_both_engines() -> None:
    def row(engine: str, batch: int, speed: float) -> dict[str, object]:
        return {"engine": engine, "what": "decode", "batch": batch, "tokens_per_s": speed}

    rows = [row("splitrank", 1, 300), row("splitrank", 1, 999), row("splitrank", 8, 5), row("vllm", 1, 200)]
    (pair,) = read_pairs(rows)
    assert (pair.name, pair.ratio) == ("decode of 1", 1.5)
    assert "1.50 x" in draw([pair], "title")


def test_rows_of_one_engine_alone_are_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"engine": "splitrank", "what": "ready", "seconds": 1}) + "\n")
    monkeypatch.setattr("sys.argv", ["plot_perf", "--rows", str(rows)])
    assert plot_perf.main() == 1
    assert "no workload with rows of both engines" in capsys.readouterr().err
