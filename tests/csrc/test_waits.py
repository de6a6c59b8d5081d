"""A host's waits end in time where ranks outnumber the cores, or other work takes them."""

from pathlib import Path

from tests.csrc.programs import CSRC, FOLDER, PROOF, build, run

pytestmark = PROOF


def test_slow_yields_do_not_put_off_the_limit(tmp_path: Path) -> None:
    """Four yields are as long as the limit. The clock is looked at every 256 polls, of which sixteen yield."""
    host = [CSRC / "stage_mailbox" / "cpu" / "host_mailbox.cc", CSRC / "quick_reduce" / "cpu" / "shared_memory.cc"]
    program = build([FOLDER / "waits" / "waits.cc", *host], tmp_path / "waits", "-O1")
    report = run(program).json()
    assert report["is_timeout"]
    assert report["yields"] <= 32
