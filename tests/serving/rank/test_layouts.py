"""Real processes over the grid pp 1..4 x tp 1, 2, 4: pp alone changes no bit, tp changes the rounding of sums."""

from itertools import product

import pytest
import torch

from tests.support.layout_runs import DTYPES, VOCAB_SIZE, Layouts, num_sampled, plans
from tests.support.stage_runner import relative_error

GRID = list(product((2, 3, 4), (1, 2, 4)))  # pp, tp; pp = 1 is what each is compared with
# A sum of n <= 128 products taken in another order differs by about sqrt(n) * 2^-24 of its size. Ten row-parallel sums
# and as many GEMMs of another width: sqrt(20 * 128) * 2^-24 = 3e-6; norms over few numbers and softmax amplify by ten.
TP_BOUND = 3e-5


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return Layouts(tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize(("pp", "tp"), GRID)
def test_pp_alone_changes_no_bit(layouts: Layouts, pp: int, tp: int) -> None:
    for dtype in DTYPES:
        expected, found = layouts.outcome(1, tp)[dtype], layouts.outcome(pp, tp)[dtype]
        assert expected["logits"].shape == (sum(map(num_sampled, plans())), VOCAB_SIZE)
        assert torch.isfinite(expected["logits"]).all()
        assert torch.equal(found["logits"], expected["logits"])
        assert torch.equal(found["tokens"], expected["tokens"])


@pytest.mark.parametrize("tp", [2, 4])
def test_tp_differs_by_rounding_only(layouts: Layouts, tp: int) -> None:
    expected, found = layouts.outcome(1, 1)["float32"], layouts.outcome(1, tp)["float32"]
    assert not torch.equal(found["logits"], expected["logits"])  # otherwise nothing was split
    assert relative_error(found["logits"], expected["logits"]) <= TP_BOUND
    assert torch.equal(found["tokens"], expected["tokens"])
