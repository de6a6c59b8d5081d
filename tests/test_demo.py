"""``scripts/demo`` from end to end: two pipeline ranks, one question over HTTP, its right answer, a clean end."""

import subprocess
import sys
from pathlib import Path

from splitrank.serving.cli import main
from tests.support.limits import PROGRAM_S, scaled

ROOT = Path(__file__).parents[1]


def test_the_demo_asks_and_stops_cleanly() -> None:
    command = [sys.executable, "scripts/demo.py"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scaled(PROGRAM_S))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "rank 1 (stage 1, tp 0)  layers 4-7" in finished.stdout
    thinking, answer = finished.stdout.split("thinking:\n")[1].split("answer:\n")
    assert "48 / 2 = 24" in thinking
    assert "#### 72" in answer
    assert "think>" not in answer
    assert "finished by stop" in finished.stdout
    assert finished.stdout.splitlines()[0] == "$ splitrank serve --pp 2 --port 0"
    assert finished.stdout.splitlines()[-1] == "the server has stopped cleanly"


def test_a_missing_checkpoint_is_one_line(capsys, tmp_path: Path) -> None:
    assert main(["serve", "--port", "0", "--model", str(tmp_path / "absent")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("splitrank serve: error: ")
    assert "absent" in line


def test_more_stages_than_layers_is_one_line(capsys) -> None:
    assert main(["serve", "--port", "0", "--pp", "9"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "9" in line
    assert "8" in line
