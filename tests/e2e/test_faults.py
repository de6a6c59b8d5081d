"""The comparison of layouts is sensitive: with a fault planted in a layout it ends with exit code 1 and says so.

The demo's own questions, which the sound model gets right; what a fault changes is counted like any wrong answer.
"""

from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.gsm8k.config import parse_layout
from tests.e2e.faulty_rank import FAULTY, SEPARATOR, SMALL_FAULT
from tests.e2e.servers import temporary_folder
from tests.e2e.test_gsm8k import run_gsm8k
from tests.support.fault_names import FAULT

NUM_QUESTIONS = 24  # eight that differ one way are p = 0.0078
OPTIONS = ("--dtype", "float32", "--shots", 0, "--max-tokens", 96, "--threads-per-rank", 1, "--no-trace")
Compared = tuple[int, str, dict[str, Any]]  # exit code, all that was said, report


def compare(
    folder: Path, *layouts: str, faults: str = "", num_questions: int = NUM_QUESTIONS, concurrency: int = NUM_QUESTIONS
) -> Compared:
    planted = {FAULT: faults, **FAULTY} if faults else {}
    options = (*OPTIONS, "--limit", num_questions, "--concurrency", concurrency)
    return run_gsm8k(folder, *options, "--layouts", *layouts, **planted)


@pytest.mark.full  # test_gsm8k.py compares sound layouts
def test_sound_layouts_agree(temporary: Path) -> None:
    code, said, report = compare(temporary, "pp=1", "pp=2", "tp=2")
    assert code == 0, said
    assert all(found["strict"]["num_right"] >= NUM_QUESTIONS - 2 for found in report["layouts"])  # 98% of all
    assert "DISAGREE" not in said


# Which layout has it (faulty_rank.py).
FAULTY_LAYOUTS = {
    "experts swapped between stages": "pp=2",
    "one all-reduce skipped": "tp=2",
    "a page given to two requests": "pp=3",
}


@pytest.fixture(scope="module")
def compared() -> Compared:
    """The sound layout is asked once and compared with all that have a fault."""
    with temporary_folder() as folder:
        return compare(folder, "pp=1", *FAULTY_LAYOUTS.values(), faults=SEPARATOR.join(FAULTY_LAYOUTS))


@pytest.mark.parametrize("fault", FAULTY_LAYOUTS)
def test_a_fault_in_one_layout_is_found(compared: Compared, fault: str) -> None:
    code, said, report = compared
    assert code == 1, said
    layout = str(parse_layout(FAULTY_LAYOUTS[fault]))
    runs = {found["layout"]: found for found in report["layouts"]}
    assert runs["pp=1"]["strict"]["num_right"] >= NUM_QUESTIONS - 2
    assert runs["pp=1"]["lost"] == runs[layout]["lost"] == 0
    (pair,) = [pair for pair in report["pairs"] if (pair["first"], pair["second"]) == ("pp=1", layout)]
    assert pair["strict"]["mcnemar_p"] < pair["max_p"] < 0.01
    assert f"DISAGREE: pp=1 and {layout} (strict)" in said


@pytest.mark.full
def test_a_fault_that_costs_few_numbers_is_found_one_by_one(temporary: Path) -> None:
    code, said, _ = compare(temporary, "pp=1", "pp=2", faults=SMALL_FAULT, concurrency=1)
    assert code == 1, said
    assert "DISAGREE" not in said
    assert "ALTERED: pp=1 and pp=2 answer " in said
