"""``splitrank gsm8k`` with the real engine: pp alone changes no byte, and a random model is called uninformative."""

import json
from pathlib import Path
from typing import Any

from tests.e2e.servers import processes_of, run_command, run_dirs

NAMES = ("Ada", "Ben", "Cem", "Dora", "Elif", "Finn", "Gina", "Hugo")


def write_questions(file: Path, numbers: range) -> Path:
    with open(file, "w") as lines:
        for number in numbers:
            name = NAMES[number % len(NAMES)]
            question = f"{name} has {number} apples and buys {number + 2} more. How many apples does {name} have?"
            total = 2 * number + 2
            answer = (
                f"{name} has {number} + {number + 2} = <<{number}+{number + 2}={total}>>{total} apples.\n#### {total}"
            )
            lines.write(json.dumps({"question": question, "answer": answer}) + "\n")
    return file


def run_gsm8k(temporary: Path, *arguments: object) -> tuple[int, str, dict[str, Any]]:
    """(exit code, all that was said, report)."""
    write_questions(temporary / "train.jsonl", range(100, 110))
    data, report = write_questions(temporary / "test.jsonl", range(12)), temporary / "report.json"
    command = ("gsm8k", "--data", data, "--report", report, "--limit", 8, "--max-tokens", 24, *arguments)
    finished = run_command(temporary, *command)
    assert not processes_of(temporary)
    assert not run_dirs(temporary)
    return finished.returncode, finished.stdout + finished.stderr, json.loads(report.read_text())


def test_pipeline_stages_change_no_byte_of_the_answers(temporary: Path) -> None:
    code, said, report = run_gsm8k(temporary, "--layouts", "pp=1", "pp=2", "--concurrency", 1)
    assert code == 0, said
    assert [layout["layout"] for layout in report["layouts"]] == ["pp=1", "pp=2"]
    (pair,) = report["pairs"]
    assert (pair["byte_identical"], pair["questions"]) == (8, 8)
    assert pair["strict"]["mcnemar_p"] == 1.0
    for layout in report["layouts"]:
        assert (layout["answers"], layout["lost"]) == (8, 0)
        assert layout["strict"]["unparsable"] == 8
    assert "UNINFORMATIVE" in said
    assert "8 of 8" in said
    texts = [[answer["text"] for answer in question["answers"].values()] for question in report["questions"]]
    assert all(first == second and first for first, second in texts)
    assert len({first for first, _ in texts}) == 8


def test_a_tensor_layout_against_the_pipeline(temporary: Path) -> None:
    code, said, report = run_gsm8k(
        temporary, "--layouts", "pp=2", "tp=2", "--dtype", "float32", "--shots", 2, "--concurrency", 8
    )
    assert code == 0, said
    assert report["pairs"][0]["byte_identical"] == 8  # in float32 rounding flips no token of these
