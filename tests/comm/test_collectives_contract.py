"""One contract, every backend, real processes: the same sums by the specification, and the same bits on every rank."""

from functools import cache, reduce

import pytest
import torch
from safetensors.torch import load_file

from splitrank.comm.collectives import SingleRank
from splitrank.comm.quick_reduce import QuickAllReduce
from tests.support.collectives_rank import BACKENDS, DTYPES, WIDTHS, Case, cases, columns, largest
from tests.support.forked import ForkedProcess, finish_all
from tests.support.quick_reduce_spec import error_bound, expected_sum

WORLD_SIZES = (2, 4, 8)
EXACT = [backend for backend in BACKENDS if backend != "torch"]
CODECS = {backend: backend.partition(" ")[2] or "none" for backend in BACKENDS}

Outcome = list[dict[str, torch.Tensor]]  # by rank


@pytest.fixture(scope="module", params=WORLD_SIZES)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    world_size = request.param
    folder = tmp_path_factory.mktemp(f"ranks{world_size}")
    module = "tests.support.collectives_rank"
    finish_all([ForkedProcess(module, folder, rank, world_size) for rank in range(world_size)])
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(world_size)]


@cache
def inputs(case: Case, world_size: int) -> list[torch.Tensor]:
    return [case.inputs(rank) for rank in range(world_size)]


@cache
def expected(case: Case, world_size: int, codec: str, algorithm: str = "two-shot") -> torch.Tensor:
    return expected_sum(inputs(case, world_size), codec, algorithm)


@cache
def exact_and_bound(case: Case, world_size: int, codec: str) -> tuple[torch.Tensor, torch.Tensor]:
    parts = inputs(case, world_size)
    return torch.stack(parts).double().sum(dim=0), error_bound(parts, codec)


@cache
def rounding(case: Case, world_size: int) -> torch.Tensor:
    """Of sums that are rounded after every addition."""
    parts = inputs(case, world_size)
    return world_size * torch.finfo(parts[0].dtype).eps * reduce(torch.add, (part.float().abs() for part in parts))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rank_has_the_same_bits(outcome: Outcome, backend: str) -> None:
    names = [name for name in outcome[0] if name.startswith(backend + "/")]
    assert len(names) == len(cases(len(outcome))) + 2 + len(DTYPES)
    for name in names:
        first = outcome[0][name]
        bits = torch.int32 if first.dtype == torch.float32 else torch.int16
        for other in outcome[1:]:
            assert torch.equal(other[name].view(bits), first.view(bits)), name


@pytest.mark.parametrize("backend", EXACT)
def test_sums_are_those_of_the_specification_bit_by_bit(outcome: Outcome, backend: str) -> None:
    for case in cases(len(outcome)):
        assert torch.equal(outcome[0][f"{backend}/{case.number}"], expected(case, len(outcome), CODECS[backend])), case


@pytest.mark.parametrize("backend", EXACT)
def test_two_ranks_code_the_parts_of_a_large_message_and_not_the_sum(outcome: Outcome, backend: str) -> None:
    algorithm = "one-shot" if len(outcome) == 2 else "two-shot"
    wanted = expected(largest(len(outcome)), len(outcome), CODECS[backend], algorithm)
    assert torch.equal(outcome[0][f"{backend}/chosen"], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_are_within_the_derived_bound(outcome: Outcome, backend: str) -> None:
    for case in cases(len(outcome)):
        exact, bound = exact_and_bound(case, len(outcome), CODECS[backend])
        if backend == "torch":
            bound = bound + rounding(case, len(outcome))
        found = outcome[0][f"{backend}/{case.number}"].double()
        assert ((found - exact).abs() <= bound).all(), case


def test_the_inputs_would_show_another_order_of_the_sum(outcome: Outcome) -> None:
    """Else the bitwise test would prove nothing: ((0+1)+2)+3 gives other bits than (0+1)+(2+3)."""
    if len(outcome) == 2:
        pytest.skip("two ranks have one order")
    parts = inputs(largest(len(outcome)), len(outcome))
    assert not torch.equal(reduce(torch.add, parts), expected_sum(parts))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_that_no_kernel_takes_are_summed_all_the_same(outcome: Outcome, backend: str) -> None:
    last = cases(len(outcome))[-1]
    parts = [last.inputs(rank).repeat(999, 1) for rank in range(len(outcome))]
    exact, bound = sum(part.double() for part in parts), error_bound(parts, CODECS[backend])
    bound = bound + len(parts) * torch.finfo(parts[0].dtype).eps * sum(part.abs() for part in parts)
    assert ((outcome[0][f"{backend}/view"].double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gathered_columns_keep_every_bit(outcome: Outcome, backend: str) -> None:
    for dtype in DTYPES.values():
        gathered = outcome[0][f"{backend}/gather {dtype}"]
        wanted = torch.cat([columns(rank, dtype) for rank in range(len(outcome))], dim=1)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        assert gathered.shape == (3, sum(WIDTHS[: len(outcome)]))
        assert torch.equal(gathered.view(bits), wanted.view(bits))


def test_one_rank_is_the_identity() -> None:
    tensor = torch.randn(5, 3)
    kept = tensor.clone()
    for collectives in (SingleRank(),):
        assert collectives.all_reduce_(tensor) is tensor
        assert collectives.all_gather_columns(tensor, (3,)) is tensor
        collectives.check()
        collectives.close()
    quick = QuickAllReduce(None, 0, 1, timeout_s=1.0)
    assert quick.all_reduce(tensor) is tensor
    assert torch.equal(quick.all_reduce(tensor, torch.empty(5, 3)), kept)
    assert quick.num_bytes == 0
    quick.close()
