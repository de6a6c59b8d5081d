"""Where exact layouts differ, ``splitrank gsm8k`` names the layer and the rank: of each planted fault, in one run."""

from pathlib import Path

import pytest

from splitrank.serving.gsm8k.config import parse_layout
from tests.e2e.faulty_rank import FAULTY, OWN_PART, SEPARATOR, SKIPPED, SMALL_FAULT
from tests.e2e.servers import temporary_folder
from tests.e2e.test_gsm8k import run_gsm8k
from tests.support.fault_names import FAULT

QUESTIONS, TOKENS = 4, 8

# The fault; its layout; where it begins, in token 0 of question 0; which ranks have other bits there than pp=1.
NAMED = {
    SMALL_FAULT: ("pp=2", "layer 3 (experts)", "rank 0 (stage 0, tp 0) of pp=2 differs"),
    SKIPPED: (
        "tp=2",
        "layer 1 (mixer)",
        "rank 0 (stage 0, tp 0) and rank 1 (stage 0, tp 1) of tp=2 pp=1 differ",
    ),
    OWN_PART: ("tp=2 pp=2", "layer 2 (mixer)", "rank 1 (stage 0, tp 1) of tp=2 pp=2 differs"),
}


def run(layouts: list[str], faults: list[str]) -> tuple[int, str]:
    options = ("--limit", QUESTIONS, "--max-tokens", TOKENS, "--concurrency", QUESTIONS, "--shots", 0)
    planted = {FAULT: SEPARATOR.join(faults), **FAULTY}
    with temporary_folder() as folder:
        code, said, report = run_gsm8k(
            folder, *options, "--threads-per-rank", 1, "--layouts", "pp=1", *layouts, **planted
        )
        assert not list(Path(folder).glob("trace-*"))
        assert [line for line in report["verdict"] if line.startswith("TRACE")]
    return code, said


ONLY_WHOLE = {SKIPPED}  # test_faults.py finds it, and serving/gsm8k/test_trace.py has lines that name two ranks


@pytest.fixture(scope="module")
def traced(full: bool) -> tuple[int, str]:
    faults = [fault for fault in NAMED if full or fault not in ONLY_WHOLE]
    return run([NAMED[fault][0] for fault in faults], faults)


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.full] if fault in ONLY_WHOLE else []) for fault in NAMED]
)
def test_the_layer_and_the_rank_of_a_fault_are_named(traced: tuple[int, str], fault: str) -> None:
    code, said = traced
    layout, where, ranks = NAMED[fault]
    assert code == 1, said
    name = parse_layout(layout)
    assert f"TRACE: pp=1 and {name}: question 0, token 0 of the prompt, {where}: {ranks} from pp=1\n" in said
    assert f"ALTERED: pp=1 and {name} answer " in said


@pytest.mark.full
def test_a_fault_that_needs_other_requests_is_found_beside_them() -> None:
    """A page that two requests share is harmless to each alone."""
    code, said = run(["pp=3"], ["a page given to two requests"])
    assert code == 1, said
    assert "TRACE: pp=1 and pp=3: question " in said
    assert "of pp=3 differs from pp=1\n" in said
