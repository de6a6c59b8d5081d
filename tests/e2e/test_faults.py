"""The comparison of layouts is sensitive: with one fault planted in one layout it ends with exit code 1 and says so.

The questions are ones that the sound model answers in its way: what pp=1 says to a question is its right answer. So
the first layout is right everywhere, and what a fault changes is counted like any wrong answer.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from splitrank.serving.gsm8k.config import parse_layout
from splitrank.serving.gsm8k.extract import extract_flexible
from splitrank.serving.tokenizer import Tokenizer
from tests.e2e.checkpoints import copy_demo
from tests.e2e.faulty_rank import FAULT, FAULTS
from tests.e2e.servers import run_command, temporary_folder
from tests.e2e.test_gsm8k import write_questions

NUM_QUESTIONS = 24  # eight that differ one way are p = 0.0078
OPTIONS = ("--dtype", "float32", "--shots", 0, "--max-tokens", 12, "--concurrency", 8, "--threads-per-rank", 1)


@dataclass
class Exam:
    """A model that answers in digits, and questions whose right answers are its own at pp=1."""

    folder: Path
    model: Path
    questions: Path

    def compare(self, *layouts: str, fault: str = "") -> tuple[int, str, dict[str, Any]]:
        """(exit code, all that was said, report)."""
        report = self.folder / "report.json"
        module = "tests.e2e.faulty_splitrank" if fault else "splitrank.serving"
        command = ["gsm8k", "--model", self.model, "--data", self.questions, "--report", report, *OPTIONS]
        finished = run_command(self.folder, *command, "--layouts", *layouts, module=module, **{FAULT: fault})
        return finished.returncode, finished.stdout + finished.stderr, json.loads(report.read_text())


@pytest.fixture(scope="module")
def exam() -> Iterator[Exam]:
    with temporary_folder() as folder:
        model = speaks_digits(copy_demo(folder / "model"))
        exam = Exam(folder, model, write_questions(folder / "test.jsonl", range(NUM_QUESTIONS)))
        code, said, report = exam.compare("pp=1")
        assert code == 0, said
        with open(exam.questions, "w") as lines:
            for question in report["questions"]:
                number = extract_flexible(question["answers"]["pp=1"]["text"])
                lines.write(json.dumps({"question": question["question"], "answer": f"#### {number}"}) + "\n")
        yield exam


def speaks_digits(model: Path) -> Path:
    """The head's rows of the digits are made eight times as large: the best of them beats every other token."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    digits = torch.tensor([token for digit in "0123456789" for token in Tokenizer.from_folder(model).encode(digit)])
    assert digits.shape == (10,)
    tensors["lm_head.weight"][digits] *= 8
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    return model


def test_sound_layouts_agree(exam: Exam) -> None:
    code, said, report = exam.compare("pp=1", "pp=2", "tp=2")
    assert code == 0, said
    assert [found["flexible"]["value"] for found in report["layouts"]] == [1.0] * 3
    assert "DISAGREE" not in said


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_layout_is_found(exam: Exam, fault: str) -> None:
    layout = "tp=2" if "all-reduce" in fault else "pp=2"
    code, said, report = exam.compare("pp=1", layout, fault=fault)
    assert code == 1, said
    assert report["layouts"][0]["flexible"]["value"] == 1.0
    assert report["layouts"][0]["lost"] == report["layouts"][1]["lost"] == 0
    (pair,) = report["pairs"]
    assert pair["flexible"]["mcnemar_p"] < 0.01
    assert f"DISAGREE: pp=1 and {parse_layout(layout)} (flexible)" in said
