"""The published reproduction of the hang, in small: ``scripts/stress_all_reduce.py`` as it is called."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import stress_all_reduce
from tests.support.forked import ForkedProcess
from tests.support.limits import PROGRAM_S, scaled

PROGRAM = Path(__file__).parents[2] / "scripts" / "stress_all_reduce.py"


def stress(*arguments: object) -> tuple[int, dict[str, object]]:
    """The program's exit code and its line."""
    finished = subprocess.run(
        [sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=scaled(PROGRAM_S)
    )
    assert finished.stdout.count("\n") == 1, finished.stderr
    return finished.returncode, json.loads(finished.stdout)


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program starts its ranks by forks."""
    ranks: list[ForkedProcess] = []

    def start(command: list[str], **_: Any) -> ForkedProcess:
        ranks.append(ForkedProcess("scripts.stress_all_reduce", *command[2:]))
        return ranks[-1]

    monkeypatch.setattr(stress_all_reduce, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    yield
    for rank in ranks:
        rank.communicate()


# Sizes shrink thrice, or twice, and grow again, more than two times.
@pytest.mark.parametrize(("world_size", "calls", "rows"), [(2, 600, 400), (4, 400, 200)])
@pytest.mark.usefixtures("forked_ranks")
def test_growing_and_shrinking_calls_without_a_barrier(
    world_size: int, calls: int, rows: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--world-size", world_size, "--calls", calls, "--max-rows", rows)
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *map(str, options)])
    code = stress_all_reduce.main()
    line = json.loads(capsys.readouterr().out)
    assert (code, line["passed"]) == (0, True)
    assert line["ranks"] == [{"rank": rank, "calls": calls, "errors": []} for rank in range(world_size)]


def test_a_rank_that_cannot_go_on_is_a_failed_run() -> None:
    code, line = stress("--world-size", 2, "--calls", 10, "--timeout-s", 0.001, "--max-rows", 100, "--stall-every", 1)
    assert (code, line["passed"]) == (1, False)
