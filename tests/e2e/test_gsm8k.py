"""``splitrank gsm8k`` with the real engine and the demo: no layout changes a bit, and the answers are right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.servers import processes_of, run_command, run_dirs, run_forked
from tests.support.limits import COMPARISON_S

MAX_TOKENS = ("--max-tokens", 96)


def run_gsm8k(
    temporary: Path, *arguments: object, run: Callable[..., Any] = run_forked, **variables: str
) -> tuple[int, str, dict[str, Any]]:
    """(exit code, all that was said, report) of the demo's own questions; ``variables`` of the environment."""
    report = temporary / "report.json"
    finished = run(temporary, "gsm8k", "--report", report, *arguments, limit_s=COMPARISON_S, **variables)
    assert not processes_of(temporary)
    assert not run_dirs(temporary)
    return finished.returncode, finished.stdout + finished.stderr, json.loads(report.read_text())


def test_pipeline_stages_change_no_byte_of_the_answers(temporary: Path) -> None:
    """The command as users start it."""
    options = ("--limit", 4, *MAX_TOKENS, "--layouts", "pp=1", "pp=2", "--concurrency", 1)
    code, said, report = run_gsm8k(temporary, *options, run=run_command)
    assert code == 0, said
    assert [layout["layout"] for layout in report["layouts"]] == ["pp=1", "pp=2"]
    (pair,) = report["pairs"]
    assert (pair["byte_identical"], pair["questions"]) == (4, 4)
    assert pair["strict"]["mcnemar_p"] == 1.0
    for layout in report["layouts"]:
        assert (layout["answers"], layout["lost"]) == (4, 0)
        assert layout["strict"]["unparsable"] == 0
        assert layout["strict"]["num_right"] >= 3  # of all of them 98% are
    assert "UNINFORMATIVE" not in said
    texts = [[answer["text"] for answer in question["answers"].values()] for question in report["questions"]]
    assert all(first == second and first for first, second in texts)
    assert len({first for first, _ in texts}) == 4


def test_a_tensor_layout_against_the_pipeline(temporary: Path) -> None:
    options = ("--limit", 8, *MAX_TOKENS, "--layouts", "pp=2", "tp=2", "--shots", 2, "--concurrency", 8)
    code, said, report = run_gsm8k(temporary, *options, "--dtype", "float32")
    assert code == 0, said
    (pair,) = report["pairs"]
    assert pair["byte_identical"] == 8
    num_rows = sum(question["answers"]["pp=2"]["tokens"] for question in report["questions"])
    assert pair["equal_logit_rows"] == pair["logit_rows"] == num_rows > 0
    assert "no bit differs: 8 answers and " in said
