"""The published reproduction of the hang, in small: ``scripts/stress_all_reduce.py`` as it is called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import PROGRAM_S, scaled

PROGRAM = Path(__file__).parents[2] / "scripts" / "stress_all_reduce.py"


def stress(*arguments: object) -> tuple[int, dict[str, object]]:
    finished = subprocess.run(
        [sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=scaled(PROGRAM_S)
    )
    assert finished.stdout.count("\n") == 1, finished.stderr
    return finished.returncode, json.loads(finished.stdout)


# Sizes shrink thrice, or twice, and grow again, more than two times.
@pytest.mark.parametrize(("world_size", "calls", "rows"), [(2, 600, 400), (4, 400, 200)])
def test_growing_and_shrinking_calls_without_a_barrier(world_size: int, calls: int, rows: int) -> None:
    code, line = stress("--world-size", world_size, "--calls", calls, "--max-rows", rows)
    assert (code, line["passed"]) == (0, True)
    assert line["ranks"] == [{"rank": rank, "calls": calls, "errors": []} for rank in range(world_size)]


def test_a_rank_that_cannot_go_on_is_a_failed_run() -> None:
    code, line = stress("--world-size", 2, "--calls", 10, "--timeout-s", 0.001, "--max-rows", 100, "--stall-every", 1)
    assert (code, line["passed"]) == (1, False)
