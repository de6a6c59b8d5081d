"""The compile check of the GPU kernels: it finds nothing in ours, and would find what it looks for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def run(*arguments: str, timeout: int) -> tuple[int, str]:
    """In a process of its own, which compiles and does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPTS / "check_gpu_kernels.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.full  # the proof below compiles them, too
@pytest.mark.timeout(600)
def test_the_kernels_of_one_row_compile_for_both_vendors(tmp_path: Path) -> None:
    code, text = run("--target", "sm_90", "gfx942", "--rows", "1", "--json", str(tmp_path / "rows.json"), timeout=580)
    assert code == 0, text
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = {(row["kernel"], row["target"]) for row in rows}
    assert {("delta_step", "sm_90"), ("delta_step", "gfx942"), ("experts_up_one", "gfx942")} <= names
    assert all(row["registers"] > 0 for row in rows)


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_all_kernels_compile_for_all_machines(full: bool) -> None:
    """Only ``--full`` compiles all tiles, and those for gfx90a and gfx950, which have gfx942's."""
    targets = () if full else ("--target", "sm_90", "gfx942", "--largest")
    code, text = run("--jobs", "2", *targets, timeout=3500)
    assert code == 0, text


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"spills": 3}, "project_dot on gfx942 (8 rows) spills 3 registers, limit 0"),
        (
            {"shared_bytes": 65537},
            "project_dot on gfx942 (8 rows) needs 65537 bytes of shared memory, a block has 65536",
        ),
        ({"shared_bytes": 65537, "target": "gfx950"}, None),
        ({"matrix": ""}, "project_dot on gfx942 (8 rows) multiplies without matrix instructions"),
        ({"matrix": "", "kernel": "add_norm"}, None),
    ],
)
def test_problems_are_seen(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], problem: str | None) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from scripts.check_gpu_kernels import Row

    good = {"kernel": "project_dot", "target": "gfx942", "rows": "8", "registers": 90, "spills": 0}
    row = Row(**{**good, "shared_bytes": 65536, "matrix": "v_mfma", **changes})
    assert row.problems() == ([problem] if problem else [])
