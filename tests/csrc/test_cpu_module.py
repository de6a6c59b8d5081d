"""What the CPU's compiled all-reduce returns: the bits of the reference, on every rank, at any size and cut."""

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

from splitrank._quick_reduce_cpu import TARGET, Communicator, device_count, instruction_sets
from tests.csrc.cpu_world import (
    CODECS,
    DTYPES,
    NUM_SLOTS,
    ONE_SHOT,
    SEGMENT_BYTES,
    TWO_SHOT,
    World,
    on_threads,
    reduce_on,
)
from tests.support.limits import BUILD_S, PROGRAM_S, scaled
from tests.support.quick_reduce_spec import expected_sum

CSRC = Path(__file__).parents[2] / "csrc"
WAYS = [("none", ONE_SHOT), *((codec, TWO_SHOT) for codec in CODECS)]
TWO_RANKS_WAYS = [(codec, ONE_SHOT) for codec in CODECS[1:]]
NAMES = {ONE_SHOT: "one-shot", TWO_SHOT: "two-shot"}
# Around a block, a piece, a segment, a round over all slots; and a few odd ones.
SIZES = (1, 2, 31, 32, 33, 1023, 1024, 1025, 4097, 32 * 1024, 50_001)


def samples(world_size: int, size: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Different on each rank, with blocks of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp2(torch.randint(-6, 7, (size,), generator=generator))
    return [(torch.randn(size, generator=generator) * scale).to(dtype) for _ in range(world_size)]


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("world_size", "codec", "algorithm"),
    [*((size, *way) for size in (2, 4, 8) for way in WAYS), *((2, *way) for way in TWO_RANKS_WAYS)],
)
def test_the_bits_are_those_of_the_reference(world_size: int, codec: str, algorithm: int, dtype: torch.dtype) -> None:
    with World(world_size) as world:
        for size in SIZES:
            inputs = samples(world_size, size, dtype, seed=size)
            expected = expected_sum(inputs, codec, NAMES[algorithm])
            for rank, output in enumerate(world.all_reduce(inputs, codec, algorithm)):
                assert same_bits(output, expected), f"{size} elements, rank {rank}"


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize(
    ("world_size", "codec", "algorithm"), [*((4, *way) for way in WAYS), *((2, *way) for way in TWO_RANKS_WAYS)]
)
def test_every_instruction_set_gives_the_same_bits(name: str, world_size: int, codec: str, algorithm: int) -> None:
    with World(world_size, instruction_set=name) as world:
        for dtype in DTYPES:
            inputs = samples(world_size, 3001, dtype, seed=3)
            for output in world.all_reduce(inputs, codec, algorithm):
                assert same_bits(output, expected_sum(inputs, codec, NAMES[algorithm]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", [ONE_SHOT, TWO_SHOT])
def test_special_values_in_full_precision(dtype: torch.dtype, algorithm: int) -> None:
    limits = torch.finfo(dtype)
    special = [0.0, -0.0, 1.0, limits.max, -limits.max, limits.tiny, limits.smallest_normal / 8, float("inf"), 1 / 3]
    pairs = torch.cartesian_prod(torch.tensor(special, dtype=dtype), torch.tensor(special, dtype=dtype))
    inputs = [pairs[:, 0].clone(), pairs[:, 1].clone()]
    with World(2) as world:
        for output in world.all_reduce(inputs, algorithm=algorithm):
            assert same_bits(output, expected_sum(inputs, "none"))
        bad = [torch.tensor([float("nan"), float("inf")], dtype=dtype), torch.tensor([1.0, float("-inf")], dtype=dtype)]
        for output in world.all_reduce(bad, algorithm=algorithm):
            assert output.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_rank_does_with_subnormal_numbers_changes_no_sum(dtype: torch.dtype) -> None:
    """Else a rank that flushes them would have other sums than its peers, from one-shot on."""
    inputs = [torch.full((64,), torch.finfo(dtype).tiny / 8).to(dtype) for _ in range(2)]
    outputs = [torch.empty_like(tensor) for tensor in inputs]
    with World(2) as world:

        def sum_on(rank: int) -> bool:
            torch.set_flush_denormal(rank == 1)  # of this thread, which ends with the call
            return reduce_on(world.ranks[rank], inputs[rank], outputs[rank], algorithm=ONE_SHOT)

        assert world.on_every_rank(sum_on) == [True, True]
    for output in outputs:
        assert same_bits(output, expected_sum(inputs, "none"))


@pytest.mark.parametrize("algorithm", [ONE_SHOT, TWO_SHOT])
@pytest.mark.parametrize("codec", CODECS[1:])
def test_special_values_under_a_codec(codec: str, algorithm: int) -> None:
    """A block that holds no finite sum has no finite element, its neighbours are whole; tiny blocks become zeros."""
    values = torch.ones(128)
    values[5], values[70] = float("inf"), float("nan")
    values[32:64] = 2.0**-110
    with World(2) as world:
        for output in world.all_reduce([values, values], codec, algorithm):
            assert not output[:32].isfinite().any()
            assert torch.equal(output[32:64], torch.zeros(32))
            assert not output[64:96].isfinite().any()
            assert torch.equal(output[96:], torch.full((32,), 2.0))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_sums_of_ones_are_exact_under_every_codec(world_size: int, codec: str) -> None:
    with World(world_size) as world:
        for output in world.all_reduce([torch.ones(5000)] * world_size, codec):
            assert torch.equal(output, torch.full((5000,), float(world_size)))


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 64])
def test_the_cut_does_not_change_the_bits(num_slots: int) -> None:
    inputs = samples(4, 20_000, torch.bfloat16, seed=1)
    for codec, algorithm in WAYS:
        with World(4, num_slots=num_slots, segment_bytes=1024) as world:
            for output in world.all_reduce(inputs, codec, algorithm):
                assert same_bits(output, expected_sum(inputs, codec))


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_mix_of_calls_on_the_same_slots_in_place(world_size: int) -> None:
    """Growing and shrinking, one-shot between two-shot, codecs in turn, ranks not in step."""
    generator = torch.Generator().manual_seed(0)
    ways = WAYS + TWO_RANKS_WAYS if world_size == 2 else WAYS
    plan = [
        (*ways[int(way)], int(size), DTYPES[int(dtype)])
        for way, size, dtype in zip(
            torch.randint(len(ways), (300,), generator=generator),
            torch.randint(1, 20_000, (300,), generator=generator),
            torch.randint(3, (300,), generator=generator),
            strict=True,
        )
    ]
    inputs = [samples(world_size, size, dtype, seed) for seed, (_, _, size, dtype) in enumerate(plan)]
    sums = [[tensor.clone() for tensor in tensors] for tensors in inputs]
    with World(world_size) as world:

        def all_calls(rank: int) -> None:
            for call, (codec, algorithm, _, _) in enumerate(plan):
                assert reduce_on(world.ranks[rank], sums[call][rank], None, codec, algorithm), call

        world.on_every_rank(all_calls)
    for call, (codec, algorithm, _, _) in enumerate(plan):
        expected = expected_sum(inputs[call], codec, NAMES[algorithm])
        assert all(same_bits(tensor, expected) for tensor in sums[call]), call


def test_nothing_to_do() -> None:
    with World(2) as world:
        assert world.on_every_rank(lambda rank: reduce_on(world.ranks[rank], torch.empty(0))) == [True, True]
        for output in world.all_reduce([torch.ones(7), torch.ones(7)]):
            assert torch.equal(output, torch.full((7,), 2.0))


def test_a_world_of_one_is_the_identity() -> None:
    with World(1) as world:
        tensor = torch.randn(1001)
        (output,) = world.all_reduce([tensor])
        assert same_bits(output, tensor)
        world.ranks[0].abort()
        assert not reduce_on(world.ranks[0], tensor)


def test_ranks_with_different_numbers_of_slots_agree_on_the_smallest() -> None:
    ranks = [Communicator(rank, 2, slots, SEGMENT_BYTES) for rank, slots in enumerate((6, 3))]
    assert [communicator.max_slots() for communicator in ranks] == [6, 3]
    for communicator in ranks:
        communicator.open([peer.handle() for peer in ranks], 3)
    tensors = [torch.ones(30_000), torch.ones(30_000)]
    jobs = [partial(reduce_on, communicator, tensor) for communicator, tensor in zip(ranks, tensors, strict=True)]
    assert on_threads(jobs) == [True, True]
    assert torch.equal(tensors[0], torch.full((30_000,), 2.0))
    for communicator in ranks:
        communicator.close()


def test_memory_depends_on_the_shape_of_the_region_only() -> None:
    with World(8, num_slots=8, segment_bytes=32 * 1024) as world:
        before = world.ranks[0].num_bytes
        assert 8 * 3 * 7 * 32 * 1024 < before < 8 * 3 * 8 * 32 * 1024
        world.all_reduce([torch.ones(300_000)] * 8)
        assert world.ranks[0].num_bytes == before


@pytest.mark.parametrize(
    ("name", "flags"), [("avx2", ["-mavx2"]), ("avx512", ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"])]
)
@pytest.mark.parametrize(
    ("folder", "namespace", "at_least"), [("quick_reduce/cpu", "quick_reduce", 100), ("cpu", "cpu_kernels", 50)]
)
def test_the_linker_cannot_mix_instruction_sets(
    folder: str, namespace: str, at_least: int, name: str, flags: list[str], tmp_path: Path
) -> None:
    """Functions that it may merge with those of other files (weak symbols) carry the instruction set in their names.

    Without optimisation none is inlined away. Else a machine without AVX-512 could run into an illegal instruction.
    """
    source, target = CSRC / folder / f"kernels_{name}.cc", tmp_path / "kernels.o"
    compiler = ["c++", "-std=c++20", "-O0", "-fPIC", "-mfma", *flags]
    subprocess.run([*compiler, "-c", str(source), "-o", str(target)], check=True, timeout=scaled(BUILD_S))
    listed = subprocess.run(
        ["nm", "-C", str(target)], check=True, capture_output=True, text=True, timeout=scaled(PROGRAM_S)
    ).stdout
    weak = [line for line in listed.splitlines() if re.match(r"[0-9a-f]+ [WVu] ", line)]
    assert len(weak) > at_least
    # Placement new returns its argument, whatever it is compiled for.
    mixed = [line for line in weak if f"{namespace}_{name}::" not in line and "operator new" not in line]
    assert mixed == []


def test_the_module_says_what_it_is() -> None:
    assert (TARGET, device_count()) == ("cpu", 1)
    assert instruction_sets()[0] == "baseline"
    with World(2) as world:
        assert world.ranks[0].max_slots() == NUM_SLOTS
