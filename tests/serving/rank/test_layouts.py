"""Real processes over the grid pp 1..4 x tp 1, 2, 4: all give the same bits; with torch's operations, only pp does."""

from itertools import product

import pytest
import torch

from tests.support.layout_runs import DTYPES, VOCAB_SIZE, Layouts, Outcome, num_sampled, plans
from tests.support.stage_runner import relative_error

# pp, tp; compared with 1, 1. Half of the ranks only with --full: their pp and their tp are in the others, and a middle
# stage of tensor ranks is in 3, 2.
ONLY_FULL = ((3, 4), (4, 2), (4, 4))
GRID = [
    pytest.param(*layout, marks=pytest.mark.full if layout in ONLY_FULL else ())
    for layout in product((1, 2, 3, 4), (1, 2, 4))
    if layout != (1, 1)
]
# Without exactness: a sum of n <= 128 products taken in another order differs by about sqrt(n) * 2^-24 of its size.
# Ten row-parallel sums and as many GEMMs of another width: sqrt(20 * 128) * 2^-24 = 3e-6; norms over few numbers and
# softmax amplify by ten.
TP_BOUND = 3e-5


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return Layouts(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def inexact(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return Layouts(tmp_path_factory.mktemp("inexact"), exact=False)


@pytest.mark.parametrize(("pp", "tp"), GRID)
def test_no_layout_changes_a_bit(layouts: Layouts, pp: int, tp: int) -> None:
    assert_same_bits(layouts.outcome(pp, tp), layouts.outcome(1, 1))


def test_pp_changes_no_bit_of_torchs_operations_either(inexact: Layouts) -> None:
    assert_same_bits(inexact.outcome(2, 1), inexact.outcome(1, 1))


def test_tp_differs_by_rounding_with_torchs_operations(inexact: Layouts) -> None:
    expected, found = inexact.outcome(1, 1)["float32"], inexact.outcome(1, 2)["float32"]
    assert not torch.equal(found["logits"], expected["logits"])  # otherwise nothing was split
    assert relative_error(found["logits"], expected["logits"]) <= TP_BOUND
    assert torch.equal(found["tokens"], expected["tokens"])


def test_both_operations_compute_the_same_model(layouts: Layouts, inexact: Layouts) -> None:
    expected, found = inexact.outcome(1, 1)["float32"], layouts.outcome(1, 1)["float32"]
    assert relative_error(found["logits"], expected["logits"]) <= TP_BOUND


def assert_same_bits(found: dict[str, Outcome], expected: dict[str, Outcome]) -> None:
    for dtype in DTYPES:
        assert expected[dtype]["logits"].shape == (sum(map(num_sampled, plans())), VOCAB_SIZE)
        assert torch.isfinite(expected[dtype]["logits"]).all()
        assert torch.equal(found[dtype]["logits"], expected[dtype]["logits"])
        assert torch.equal(found[dtype]["tokens"], expected[dtype]["tokens"])
