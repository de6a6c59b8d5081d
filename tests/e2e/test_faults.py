"""The comparison of layouts is sensitive: with one fault planted in one layout it ends with exit code 1 and says so.

The demo's own questions, which the sound model gets right; what a fault changes is counted like any wrong answer.
"""

from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.gsm8k.config import parse_layout
from tests.e2e.faulty_rank import FAULT, FAULTS, SMALL_FAULT
from tests.e2e.test_gsm8k import run_gsm8k

NUM_QUESTIONS = 24  # eight that differ one way are p = 0.0078
OPTIONS = ("--limit", NUM_QUESTIONS, "--dtype", "float32", "--shots", 0, "--max-tokens", 120, "--threads-per-rank", 1)


def compare(folder: Path, *layouts: str, fault: str = "", concurrency: int = 8) -> tuple[int, str, dict[str, Any]]:
    """(exit code, all that was said, report)."""
    planted = {"module": "tests.e2e.faulty_splitrank", FAULT: fault} if fault else {}
    return run_gsm8k(folder, *OPTIONS, "--concurrency", concurrency, "--layouts", *layouts, **planted)


def test_sound_layouts_agree(temporary: Path) -> None:
    code, said, report = compare(temporary, "pp=1", "pp=2", "tp=2")
    assert code == 0, said
    assert all(found["strict"]["num_right"] >= NUM_QUESTIONS - 2 for found in report["layouts"])  # 98% of all
    assert "DISAGREE" not in said


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != SMALL_FAULT])
def test_a_fault_in_one_layout_is_found(temporary: Path, fault: str) -> None:
    layout = "tp=2" if "all-reduce" in fault else "pp=2"
    code, said, report = compare(temporary, "pp=1", layout, fault=fault)
    assert code == 1, said
    assert report["layouts"][0]["strict"]["num_right"] >= NUM_QUESTIONS - 2
    assert report["layouts"][0]["lost"] == report["layouts"][1]["lost"] == 0
    (pair,) = report["pairs"]
    assert pair["strict"]["mcnemar_p"] < 0.01
    assert f"DISAGREE: pp=1 and {parse_layout(layout)} (strict)" in said


def test_a_fault_that_costs_few_numbers_is_found_one_by_one(temporary: Path) -> None:
    code, said, _ = compare(temporary, "pp=1", "pp=2", fault=SMALL_FAULT, concurrency=1)
    assert code == 1, said
    assert "DISAGREE" not in said
    assert "ALTERED: pp=1 and pp=2 answer " in said
