"""spin searches all interleavings of the handshake's model, spin/handshake.pml: ours holds, each mutation falls."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.csrc.programs import C_COMPILERS, PROOF, compile_search
from tests.support.limits import BUILD_S, PROOF_S, scaled

pytestmark = PROOF
MODEL = Path(__file__).parent / "spin" / "handshake.pml"

# What a search can find first. "false alarm": a rank fails where nothing went wrong; "unnoticed": one that must fail
# does not.
Verdict = Literal["nothing", "hang", "wrong sum", "false alarm", "unnoticed"]


@dataclass(frozen=True)
class Search:
    name: str
    settings: str  # settings.pml says what they mean
    verdict: Verdict = "nothing"
    large: bool = False  # millions of states
    full: bool = False  # takes long, or another search contains it: only with --full

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


# The n-th call is a code of three digits, size - blocks - algorithm: 12 is a two-shot call of one block.
SOUND = [
    Search("1-2 blocks", "CALLS=2 CALL_1=12 CALL_2=22", full=True),  # the first calls of the next
    Search("1-2-1 blocks", "CALLS=3 CALL_1=12 CALL_2=22"),
    Search("2-1-2 blocks", "CALLS=3 CALL_1=22 CALL_2=12"),
    Search("one-shot only", "CALLS=4 CALL_1=21"),
    Search("one-shot between two-shots", "CALLS=3 CALL_1=22 CALL_2=11"),
    Search("two-shot between one-shots", "CALLS=3 CALL_1=21 CALL_2=12"),
    Search("even number of one-shots between", "SLOTS=1 CALLS=5 CALL_1=12 CALL_2=11 CALL_3=11 CALL_5=11"),
    Search("registered among the others", "CALLS=4 CALL_1=23 CALL_2=11 CALL_3=22"),
    Search("registered only", "CALLS=3 CALL_1=23 CALL_2=13"),
    Search("replayed one-shot", "CALLS=4 CALL_1=11 REPLAY"),
    Search("replayed two-shot", "CALLS=3 CALL_1=12 REPLAY"),
    Search("sequence wraps, two-shot", "SLOTS=1 CALLS=5 CALL_1=12 SEQUENCE_BITS=2"),
    Search("sequence wraps, one-shot", "SLOTS=1 CALLS=5 CALL_1=11 SEQUENCE_BITS=3"),
    Search("3 ranks, mixed", "W=3 SLOTS=1 CALLS=3 CALL_1=12 CALL_2=11 CALL_3=13"),
    Search("3 ranks, one-shot", "W=3 SLOTS=1 CALLS=4 CALL_1=11"),
    Search("3 ranks, 2-1 blocks", "W=3 CALLS=2 CALL_1=21 CALL_2=12", large=True, full=True),
    Search("3 ranks, 2-1-2 blocks", "W=3 CALLS=3 CALL_1=22 CALL_2=12", large=True, full=True),
    # A wait may give up at any moment: nobody hangs, and whoever does not fail has the right sum.
    Search("impatient", "CALLS=2 CALL_1=12 CALL_2=21 LIMIT=2 MAY_FAIL=1"),
    Search("impatient, mixed", "SLOTS=1 CALLS=3 CALL_1=11 CALL_2=12 CALL_3=13 LIMIT=2 MAY_FAIL=1"),
    Search("impatient, registered", "W=3 SLOTS=1 CALLS=2 CALL_1=13 LIMIT=2 MAY_FAIL=1"),
    Search("impatient, 3 ranks", "W=3 SLOTS=1 CALLS=2 CALL_1=12 CALL_2=11 LIMIT=2 MAY_FAIL=1"),
]

# FAILS is the mask of ranks that must end in an error; the last rank is the odd one.
FAULTS = [
    Search("dead peer, 2-1-2 blocks", "CALLS=3 CALL_1=22 CALL_2=12 DEAD MAY_FAIL=1", large=True, full=True),
    Search("dead peer, two-shot", "SLOTS=1 CALLS=3 CALL_1=12 DEAD MAY_FAIL=1"),
    Search("dead peer, one-shot", "CALLS=2 CALL_1=21 DEAD MAY_FAIL=1"),
    Search("dead peer, registered", "CALLS=2 CALL_1=13 DEAD MAY_FAIL=1"),
    Search("dead peer of two", "W=3 SLOTS=1 CALLS=3 CALL_1=12 CALL_2=11 DEAD MAY_FAIL=1"),
    Search("extra call", "CALLS=2 CALL_1=22 ODD_CALLS=3 MAY_FAIL=1 FAILS=2"),
    Search("extra call of three ranks", "W=3 SLOTS=1 CALLS=2 CALL_1=12 ODD_CALLS=3 MAY_FAIL=1 FAILS=4"),
    Search("missing call at the end", "CALLS=3 CALL_1=12 ODD_CALLS=2 MAY_FAIL=1 FAILS=1"),
    Search("missing call between", "CALLS=3 CALL_1=12 CALL_2=22 ODD_CALLS=2 ODD_2=12 MAY_FAIL=1 FAILS=3"),
    Search(
        "missing call of three ranks", "W=3 SLOTS=1 CALLS=3 CALL_2=12 CALL_1=11 ODD_CALLS=2 ODD_2=11 MAY_FAIL=1 FAILS=7"
    ),
    Search("another size", "CALLS=3 CALL_1=12 CALL_2=22 ODD_2=122 MAY_FAIL=1 FAILS=3"),
    Search("another size, one-shot", "CALLS=3 CALL_1=11 CALL_2=21 ODD_2=121 MAY_FAIL=1 FAILS=3"),
    Search("more blocks", "CALLS=3 CALL_1=12 ODD_2=22 MAY_FAIL=1 FAILS=3"),
    Search("more blocks, 3 ranks", "W=3 CALLS=1 CALL_1=11 ODD_1=21 MAY_FAIL=1 FAILS=7", large=True, full=True),
    Search("another algorithm", "CALLS=3 CALL_1=12 CALL_2=21 ODD_2=22 MAY_FAIL=1 FAILS=3"),
    Search("another algorithm, 3 ranks", "W=3 SLOTS=1 CALLS=2 CALL_1=12 CALL_2=11 ODD_2=12 MAY_FAIL=1 FAILS=7"),
    Search("two streams, one-shot", "SLOTS=1 CALLS=3 CALL_1=11 STREAMS=2 MAY_FAIL=1"),
    Search("two streams, two-shot", "SLOTS=1 CALLS=3 CALL_1=12 STREAMS=2 MAY_FAIL=1"),
]

WRONG = [
    Search("historical grows", "CALLS=2 CALL_1=12 CALL_2=22 HISTORICAL=1", "hang"),
    Search("historical grows, 3 ranks", "W=3 CALLS=2 CALL_1=12 CALL_2=22 HISTORICAL=1", "hang"),
    Search("historical grows, wrong sum", "CALLS=2 CALL_1=12 CALL_2=22 HISTORICAL=1", "wrong sum"),
    Search("historical with at least", "CALLS=2 CALL_1=12 CALL_2=22 HISTORICAL=2", "wrong sum"),
    Search("no parity", "CALLS=3 CALL_1=11 NO_PARITY MAY_FAIL=1", "wrong sum"),
    Search("no parity, alarm", "CALLS=2 CALL_1=11 NO_PARITY", "false alarm"),
    Search("shared phases", "CALLS=1 CALL_1=12 SHARED_PHASES MAY_FAIL=1", "wrong sum"),
    Search("flag first, one-shot", "CALLS=1 CALL_1=11 FLAG_FIRST", "wrong sum"),
    Search("flag first, two-shot", "CALLS=1 CALL_1=12 FLAG_FIRST", "wrong sum"),
    Search("no limit, dead peer", "CALLS=1 CALL_1=12 DEAD MAY_FAIL=1 LIMIT=0", "hang"),
    Search("no limit, extra call", "CALLS=1 CALL_1=12 ODD_CALLS=2 MAY_FAIL=1 LIMIT=0", "hang"),
    Search("no fingerprint", "CALLS=1 CALL_1=12 ODD_1=112 MAY_FAIL=1 NO_FINGERPRINT", "wrong sum"),
    Search("no fingerprint, algorithm", "CALLS=1 CALL_1=11 ODD_1=12 MAY_FAIL=1 FAILS=3 NO_FINGERPRINT", "wrong sum"),
    Search("number from the host", "CALLS=2 CALL_1=11 REPLAY HOST_SEQUENCE", "wrong sum"),
    Search("no end flag", "SLOTS=1 CALLS=2 CALL_1=13 NO_END_FLAG", "wrong sum"),
    Search("no last look", "SLOTS=1 CALLS=2 CALL_1=13 LIMIT=2 MAY_FAIL=1 NO_LAST_LOOK", "wrong sum"),
    Search("no ticket", "SLOTS=1 CALLS=2 CALL_1=12 STREAMS=2 MAY_FAIL=1 NO_TICKET", "wrong sum"),
    Search("number before the ticket", "SLOTS=1 CALLS=2 CALL_1=11 STREAMS=2 MAY_FAIL=1 SEQUENCE_FIRST", "wrong sum"),
    # Replays have one id, so the fingerprint cannot tell two of them apart: they must be ordered by events.
    Search("two streams replay one graph", "SLOTS=1 CALLS=2 CALL_1=12 STREAMS=2 MAY_FAIL=1 REPLAY", "wrong sum"),
    # A flag that the last two-shot call left seems to lie ahead after half of all numbers in one-shot calls.
    Search("narrow sequence", "SLOTS=1 CALLS=5 CALL_1=11 CALL_5=12 SEQUENCE_BITS=3", "false alarm"),
    # The checks can fail: nobody fails in a sound run.
    Search("expects a failure", "SLOTS=1 CALLS=1 CALL_1=12 MAY_FAIL=1 FAILS=1", "unnoticed"),
]


@pytest.fixture(scope="session")
def spin() -> None:
    if shutil.which("spin") is None and os.geteuid() == 0 and shutil.which("apt-get") is not None:
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "spin"], capture_output=True, timeout=scaled(BUILD_S), check=False
        )
    found = shutil.which("spin")
    if found is None or not any(map(shutil.which, C_COMPILERS)):
        pytest.skip("spin (Debian package of this name) or a C compiler is not installed")


def found_by(output: str) -> Verdict:
    """The first error of a search that stops at the first."""
    if "pan:1: invalid end state" in output:
        return "hang"
    violated = re.search(r"pan:1: assertion violated (.*) \(at depth", output)
    if violated is None:
        assert "errors: 0" in output, output
        return "nothing"
    if ".message==" in violated[1] or violated[1] == "right":
        return "wrong sum"
    return "unnoticed" if "failed[" in violated[1] else "false alarm"


SEARCHES = [
    pytest.param(search, id=str(search), marks=[pytest.mark.full] if search.full else [])
    for search in SOUND + FAULTS + WRONG
]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.usefixtures("spin")
def test_every_interleaving(search: Search, tmp_path: Path) -> None:
    program = compile_search(MODEL, search.settings, tmp_path, search.large)
    options = ["-m20000", "-n", "-w24" if search.large else "-w20"]
    if search.verdict == "hang":
        options.append("-A")  # passes over wrong sums
    if search.verdict == "wrong sum":
        options.append("-E")  # passes over hangs
    ran = subprocess.run([program, *options], cwd=tmp_path, capture_output=True, text=True, timeout=scaled(PROOF_S))
    output = ran.stdout + ran.stderr
    assert found_by(output) == search.verdict, f"{search.settings}\n{output}"
    if search.verdict == "nothing":
        assert "Search not completed" not in output, output
        assert "max search depth too small" not in output, output
