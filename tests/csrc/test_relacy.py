"""Relacy over the shipped templates: the flag's two memory orders are needed, and are enough."""

import os
from pathlib import Path

import pytest

from tests.csrc.programs import FOLDER, PROOF, build, run

pytestmark = PROOF
HEADER = Path("/usr/include/relacy/relacy.hpp")
# Relacy replaces operator delete, but not the sized one; and its own code warns.
FLAGS = ("-Og", "-w", "-fno-sized-deallocation")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Where the packages can be installed (scripts/setup), their absence is an error.
    if not HEADER.exists() and os.geteuid() != 0:
        pytest.skip("needs Relacy: apt install relacy-dev")
    return build([FOLDER / "relacy" / "relacy.cc"], tmp_path_factory.mktemp("relacy") / "relacy", *FLAGS)


@pytest.mark.parametrize(("world_size", "num_calls", "iterations"), [(2, 5, 100_000), (3, 4, 50_000)])
def test_no_race_and_no_stale_sum(program: Path, world_size: int, num_calls: int, iterations: int, full: bool) -> None:
    iterations //= 1 if full else 4  # what is broken is found in the first ones
    done = run(program, "shipped", "shipped", str(world_size), str(num_calls), str(iterations))
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.json() == {"good": True, "result": "SUCCESS", "iterations": iterations}


@pytest.mark.parametrize(
    ("executor", "layout"),
    [
        ("relaxed-store", "shipped"),
        ("relaxed-poll", "shipped"),
        ("shipped", "one-place"),
        ("shipped", "one-storage"),
    ],
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_what_is_broken_is_found(program: Path, executor: str, layout: str, world_size: int) -> None:
    done = run(program, executor, layout, str(world_size), "5", "20000")
    assert done.returncode == 1
    assert done.json()["good"] is False
    assert done.json()["result"] == "DATA RACE"
