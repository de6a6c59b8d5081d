"""The fault matrix sees what it is to see: what a case leaves behind, and cases that fail; and some of its cases.

All of them: ``scripts/fault_matrix``.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import door
import matrix
import pytest
import resources
from case import Case, CaseSkipped, demand
from scene import Scene

from tests.support.limits import scaled


def leave_a_process(scene: Scene) -> str:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    subprocess.run([sys.executable, "-c", child], env=scene.environment, check=True)
    return ""


def leave_a_run_folder(scene: Scene) -> str:
    (scene.folder / "splitrank-abc").mkdir()
    return ""


@pytest.mark.parametrize(
    ("leave", "left"), [(leave_a_process, "process "), (leave_a_run_folder, "run folder splitrank-abc")]
)
def test_what_a_case_leaves_behind_is_a_failure(leave: Callable[[Scene], str], left: str) -> None:
    played = matrix.play(Case("left", "something", leave), end_s=0.1)
    assert played.outcome == "FAILED"
    assert played.note.startswith(f"left behind after 0.1 s: {left}")


def test_a_port_that_is_still_in_use_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def leave(scene: Scene) -> str:
            scene.ports.append(listener.getsockname()[1])
            return ""

        assert "left behind after 0.1 s: port" in matrix.play(Case("left", "a port", leave), end_s=0.1).note


def test_a_failed_case_is_told_and_ends_with_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(scene: Scene) -> str:
        demand(1 == 2, "one is not two")
        return ""

    def skip(scene: Scene) -> str:
        raise CaseSkipped("not here")

    cases = [Case("a", "good", lambda scene: "fine"), Case("a", "bad", fail), Case("b", "elsewhere", skip)]
    monkeypatch.setattr(matrix, "all_cases", lambda cycles: cases)
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["fault_matrix", "--results", str(results)])
    assert matrix.main() == 1
    outcomes = [(one["name"], one["outcome"], one["note"]) for one in map(json.loads, results.read_text().splitlines())]
    assert outcomes == [
        ("good", "ok", "fine"),
        ("bad", "FAILED", "one is not two"),
        ("elsewhere", "skipped", "not here"),
    ]
    assert "3 cases: 1 ok, 1 FAILED, 1 skipped" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["fault_matrix", "--only", "good", "elsewhere"])
    assert matrix.main() == 0


def test_names_are_unique() -> None:
    names = [case.full_name for case in matrix.all_cases(100)]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(door._beside_honest_ones(door.nonsense), id="nonsense", marks=pytest.mark.full),
        pytest.param(resources.no_descriptors, id="no descriptors"),
    ],
)
def test_a_case_is_played(play: Callable[[Scene], str]) -> None:
    played = matrix.play(Case("clients", "some", play), end_s=scaled(30.0))
    assert played.outcome == "ok", played.note
