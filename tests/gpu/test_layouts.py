"""Ranks as processes on a GPU that they share: pp changes no bit, tp the rounding of sums, and a CPU says the same.

Sampled requests, so that every step has logits: greedy ones would take the likeliest token without storing any.
"""

from pathlib import Path

import pytest
import torch

from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.support.layout_runs import DTYPES, GREEDY, WIDE, Layouts, wide_plans
from tests.support.stage_runner import relative_error

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SAMPLED = SamplingParams(temperature=0.8, seed=7, max_tokens=100)
# Twice the CPU's bound for layouts (tests/serving/rank/test_layouts.py): two devices differ in every sum.
BOUND = 1e-4


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    devices = {"device": "cuda", "devices": (0,) * 4, "all_reduce": "torch"}
    return Layouts(tmp_path_factory.mktemp("gpu"), SAMPLED, **devices)


@pytest.mark.parametrize(("pp", "tp"), [(2, 1), (3, 1), (2, 2)])
def test_pp_alone_changes_no_bit(layouts: Layouts, pp: int, tp: int) -> None:
    for dtype in DTYPES:
        expected, found = layouts.outcome(1, tp)[dtype], layouts.outcome(pp, tp)[dtype]
        assert torch.isfinite(expected["logits"]).all()
        assert torch.equal(found["logits"], expected["logits"])
        assert torch.equal(found["tokens"], expected["tokens"])


@pytest.mark.parametrize("params", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_pp_changes_no_bit_of_1_8_and_256_rows_and_of_mixed_steps(tmp_path: Path, params: SamplingParams) -> None:
    outcomes = []
    for pp in (1, 2):
        folder = tmp_path / str(pp)
        folder.mkdir()
        # Steps of pp stages share the running requests evenly.
        sizes = {"max_running_requests": pp * WIDE, "num_pages": WIDE + 1}
        layouts = Layouts(folder, params, 1, wide_plans, device="cuda", devices=(0,) * pp, all_reduce="torch", **sizes)
        outcomes.append(layouts.outcome(pp, 1))
    for dtype in DTYPES:
        expected, found = (outcome[dtype] for outcome in outcomes)
        assert torch.equal(found["tokens"], expected["tokens"])
        assert torch.equal(found["logits"], expected["logits"])
        assert len(expected["logits"]) >= (7 if params is SAMPLED else 2) * WIDE  # greedy: prompts and mixed steps
        assert torch.isfinite(expected["logits"]).all()


def test_tp_and_a_cpu_differ_by_rounding_only(layouts: Layouts, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = layouts.outcome(1, 1)["float32"]
    on_cpu = Layouts(tmp_path_factory.mktemp("cpu"), SAMPLED).outcome(1, 1)["float32"]
    for expected in (on_cpu, layouts.outcome(1, 2)["float32"]):
        assert relative_error(found["logits"], expected["logits"]) <= BOUND
        assert torch.equal(found["tokens"], expected["tokens"])


@pytest.mark.gpu(count=2)
@pytest.mark.parametrize("params", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_quick_sums_in_graphs_give_the_bits_of_gloo(tmp_path: Path, params: SamplingParams) -> None:
    """Decode steps of tp=2 are graphs with the quick all-reduce, and launches with gloo. Two ranks have one order."""
    outcomes = []
    for number, all_reduce in enumerate(("quick", "torch")):
        folder = tmp_path / str(number)
        folder.mkdir()
        devices = {"device": "cuda", "devices": (0, 1), "all_reduce": all_reduce}
        outcomes.append(Layouts(folder, params, **devices).outcome(1, 2))
    for dtype in DTYPES:
        quick, gloo = (outcome[dtype] for outcome in outcomes)
        assert torch.equal(quick["tokens"], gloo["tokens"])
        if params is SAMPLED:
            assert torch.equal(quick["logits"], gloo["logits"])
