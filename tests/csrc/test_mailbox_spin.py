"""spin searches all interleavings of the mailbox's model, spin/mailbox.pml: ours holds, each mutation falls."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.programs import C_COMPILER, PROOF
from tests.support.limits import BUILD_S, PROOF_S, scaled

pytestmark = [
    *PROOF,
    pytest.mark.skipif(
        shutil.which("spin") is None or shutil.which(C_COMPILER) is None,
        reason="spin (Debian package of this name) or a C compiler is not installed",
    ),
]
MODEL = Path(__file__).parent / "spin" / "mailbox.pml"
WRONG_DATA = "pan:1: assertion violated (value==k)"

SOUND = (
    "P=1 M=4",
    "P=2 M=5",
    "P=3 M=5",
    "P=2 M=3 SENDER_MAY_GIVE_UP",
    "P=2 M=3 RECEIVER_MAY_GIVE_UP",
    "P=1 M=3 SENDER_MAY_GIVE_UP RECEIVER_MAY_GIVE_UP",
)
WRONG = {
    "NO_CREDIT": WRONG_DATA,
    "CREDIT_EARLY": WRONG_DATA,
    "CREDIT_FIRST": WRONG_DATA,
    "NO_FENCE": WRONG_DATA,
    "FLAG_FIRST": WRONG_DATA,
    "FIRST_BLOCK": WRONG_DATA,
    "ONE_PLACE": WRONG_DATA,
    "NOT_TOLD SENDER_MAY_GIVE_UP": "pan:1: invalid end state",
    "NOT_TOLD RECEIVER_MAY_GIVE_UP": "pan:1: invalid end state",
}


def search(settings: str, folder: Path) -> str:
    """What spin finds is C: one program for each model."""
    defines = [f"-D{setting}" for setting in settings.split()]
    limits = {"cwd": folder, "capture_output": True, "text": True}
    made = subprocess.run(["spin", "-a", *defines, str(MODEL)], timeout=scaled(BUILD_S), check=False, **limits)
    assert made.returncode == 0, made.stdout + made.stderr
    options = ["-O0", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=3000"]
    subprocess.run([C_COMPILER, *options, "-o", "pan", "pan.c"], timeout=scaled(BUILD_S), check=True, **limits)
    ran = subprocess.run(["./pan", "-m20000", "-n"], timeout=scaled(PROOF_S), check=False, **limits)
    return str(ran.stdout + ran.stderr)


@pytest.mark.parametrize("settings", SOUND)
def test_no_interleaving_hangs_or_gives_wrong_data(settings: str, tmp_path: Path) -> None:
    output = search(settings, tmp_path)
    assert "errors: 0" in output, output
    assert "Search not completed" not in output, output
    assert "max search depth too small" not in output, output


@pytest.mark.parametrize("settings", WRONG)
def test_a_broken_rule_falls(settings: str, tmp_path: Path) -> None:
    output = search(f"P=2 M=4 {settings}", tmp_path)
    assert WRONG[settings] in output, output
