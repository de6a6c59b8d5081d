"""spin searches all interleavings of the mailbox's model, spin/mailbox.pml: ours holds, each mutation falls."""

import shutil
from pathlib import Path

import pytest

from tests.csrc.programs import C_COMPILERS, PROOF, compile_search, run

pytestmark = [
    *PROOF,
    pytest.mark.skipif(
        shutil.which("spin") is None or not any(map(shutil.which, C_COMPILERS)),
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
    program = compile_search(MODEL, settings, folder)
    ran = run(program, "-m20000", "-n", "-w20")
    return ran.stdout + ran.stderr


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
