"""Two, four and eight ranks as the blocks of one kernel on one GPU: the shipped templates, bits against the
specification, and what happens when ranks disagree."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.gpu.one_gpu import Call, OneGpu, make_call
from tests.support.quick_reduce_spec import expected_sum

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

WAYS = [("one-shot", "none"), ("registered", "none"), *(("two-shot", c) for c in ("none", "int8", "int6", "int4"))]
TWO_RANKS_WAYS = [(algorithm, codec) for algorithm in ("one-shot", "tagged") for codec in ("int8", "int6", "int4")]
TAGGED = ("tagged", "none")  # among more than two ranks a block has a place for 6 KiB
SIZES = (1, 7, 31, 32, 33, 255, 1000, 4096, 4097, 100_003, 1 << 20)


@pytest.fixture(params=[2, 4, 8])
def world(all_ranks: Any, request: pytest.FixtureRequest) -> Iterator[OneGpu]:
    world = OneGpu(all_ranks, request.param)
    yield world
    world.close()


def random_parts(world_size: int, count: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator).mul(3.0).to(dtype) for _ in range(world_size)]


def check_results(calls: list[Call]) -> None:
    for call in calls:
        expected = expected_sum([part.cpu() for part in call.parts], call.codec, call.algorithm)
        for rank, output in enumerate(call.outputs):
            found = output.cpu()
            assert torch.equal(found, expected), (
                f"{call.algorithm} {call.codec} {found.numel()} {found.dtype} rank {rank}: "
                f"{(found != expected).sum().item()} elements differ"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_way_and_size_has_the_bits_of_the_specification(world: OneGpu, dtype: torch.dtype) -> None:
    calls = []
    for number, count in enumerate(SIZES):
        parts = random_parts(world.world_size, count, dtype, number)
        ways = [*WAYS, TAGGED, *TWO_RANKS_WAYS] if world.world_size == 2 else [*WAYS, TAGGED]
        largest = 100_003 if world.world_size == 2 else 4097  # of a tagged call
        calls += [make_call(parts, *way) for way in ways if way[0] != "tagged" or count <= largest]
    assert world.play(calls, longest_stall_ns=20_000) == [None] * world.world_size
    check_results(calls)


def test_codecs_at_the_edges_of_their_scale(world: OneGpu) -> None:
    """Largest magnitudes that bfloat16 rounds down the most, subnormal blocks, zeros, and one element alone."""
    edge = torch.tensor([1 + 2**-8, 1 - 2**-9, -1 - 2**-8, 2.0**-110, 0.0, 2.0**-126, 3.0e30, -1.0]).repeat_interleave(
        32
    )
    spread = edge * torch.linspace(-1, 1, edge.numel())
    parts = [edge, spread, -edge, edge.flip(0), spread * 3, edge * 0, spread.flip(0), edge][: world.world_size]
    algorithms = ("two-shot", "one-shot", "tagged") if world.world_size == 2 else ("two-shot",)
    calls = [make_call(parts, algorithm, codec) for algorithm in algorithms for codec in ("int8", "int6", "int4")]
    assert world.play(calls) == [None] * world.world_size
    check_results(calls)


@pytest.mark.parametrize("codec", ["none", "int4"])
def test_growing_and_shrinking_calls_with_stalled_ranks(world: OneGpu, codec: str) -> None:
    """The published reproduction: [s, 1024] zeros and [s, 2048] ones in turn, no barrier; the sum is 0 or W."""
    calls, size = [], 512
    parts = {}
    for number in range(240):
        if number % 20 == 19:
            size = size // 2 if size > 1 else 512
        for columns, value in ((1024, 0.0), (2048, 1.0)):
            key = (size, columns)
            if key not in parts:
                parts[key] = [torch.full((size * columns,), value, dtype=torch.float16, device="cuda")] * 8
            inputs = parts[key][: world.world_size]
            outputs = [torch.full_like(inputs[0], 99) for _ in inputs] if size <= 64 else [
                torch.empty_like(part) for part in inputs
            ]  # fmt: skip
            way = ("two-shot", codec) if number % 3 else TAGGED if size <= 4 else ("one-shot", "none")
            calls.append(Call(inputs, outputs, *way))
    assert world.play(calls, longest_stall_ns=30_000) == [None] * world.world_size
    for call in calls:
        expected = call.parts[0][0].item() * world.world_size
        assert all(bool((output == expected).all()) for output in call.outputs)


def test_ranks_that_disagree_about_the_size_fail_and_do_not_hang(world: OneGpu) -> None:
    calls = [make_call([torch.ones(4096 + 32 * (rank == 1)) for rank in range(world.world_size)])]
    failures = world.play(calls)
    assert all(failure is not None for failure in failures)
    kinds = {failure["kind"] for failure in failures if failure}
    assert "mismatch" in kinds
    assert kinds <= {"mismatch", "aborted"}


@pytest.mark.parametrize("algorithm", ["one-shot", "two-shot", "registered", "tagged"])
def test_a_call_missing_on_one_rank_is_a_failure_on_all(world: OneGpu, algorithm: str) -> None:
    calls = [make_call([torch.ones(4096) for _ in range(world.world_size)], algorithm) for _ in range(3)]
    failures = world.play(calls, absent={2: 1})
    kinds = [failure["kind"] if failure else None for failure in failures]
    assert "timeout" in kinds
    assert kinds[0] is not None
    assert kinds[1] is None  # it has left; its next call would find the abort word
    assert set(kinds) <= {"timeout", "aborted", None}
    check_results(calls[:2])


@pytest.mark.parametrize("algorithm", ["one-shot", "two-shot", "registered", "tagged"])
def test_a_call_missing_in_between_is_never_a_wrong_sum(world: OneGpu, algorithm: str) -> None:
    # Of another size each: two calls alike in everything cannot be told apart.
    calls = [
        make_call([torch.full((4096 + 32 * n,), float(n)) for _ in range(world.world_size)], algorithm)
        for n in (1, 2, 3)
    ]
    failures = world.play(calls, absent={1: 0})
    assert all(failure is not None for failure in failures)
    for call in calls:
        expected = call.parts[0][0].item() * world.world_size
        for output in call.outputs:
            assert bool(((output == expected) | output.isnan()).all())


def test_a_failed_communicator_stays_failed(world: OneGpu) -> None:
    parts = [torch.ones(64) for _ in range(world.world_size)]
    world.play([make_call(parts)], absent={0: 1})
    later = make_call(parts)
    assert all(failure is not None for failure in world.play([later]))
    assert all(bool(output.isnan().all()) for output in later.outputs)
