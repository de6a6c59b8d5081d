"""One order of summation: a token's logits are the same bits in any batch, chunking, page size, number of threads and
instruction set, and from a snapshot. Layouts: ``tests/serving/rank/test_layouts.py``. Kernels: ``tests/csrc``."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank import _cpu_ops as cpu_ops
from splitrank.models.layers.linear import Linear, RowParallel
from splitrank.models.ops import sampling
from splitrank.models.ops.cpu.exact import ExactOperations
from splitrank.models.ops.cpu.native import shard_bounds
from splitrank.models.sharding import TensorShard
from splitrank.serving.rank.cpu_steps import CpuSteps
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import StageRunner, random_tokens

LENGTH = 150
DTYPES = [torch.float32, torch.bfloat16]
ONE = TensorShard(0, 1)
NO_BATCH: Any = None  # a CPU's products look at their rows alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sizes: nothing divides the panels of 16, and the experts' inner width no shard evenly."""
    path = tmp_path_factory.mktemp("exact")
    config = random_text_config(num_hidden_layers=5, hidden_size=60, moe_intermediate_size=22, vocab_size=389)
    return write_checkpoint(make_reference(config, seed=5), path, dtype="float32")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def runner(folder: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str) -> StageRunner:
    return StageRunner(folder, tmp_path_factory.mktemp("run"), dtype=dtype)


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return random_tokens(LENGTH, 389, seed=2)


@pytest.fixture(scope="module")
def expected(runner: StageRunner, tokens: list[int]) -> torch.Tensor:
    """Logits of every token, computed one by one."""
    return in_pieces(runner, tokens, [1] * LENGTH)


def in_pieces(runner: StageRunner, tokens: list[int], lengths: list[int]) -> torch.Tensor:
    sequence, parts = runner.start(len(tokens)), []
    for length in lengths:
        (logits,) = runner.step(sequence.take(tokens[sequence.length : sequence.length + length]))
        parts.append(logits)
    runner.end(sequence)
    return torch.cat(parts)


@pytest.mark.parametrize("lengths", [[150], [64, 64, 22], [1, 149], [63, 2, 84, 1], [7] * 21 + [3]], ids=str)
def test_no_chunking_changes_a_bit(
    runner: StageRunner, tokens: list[int], expected: torch.Tensor, lengths: list[int]
) -> None:
    assert torch.equal(in_pieces(runner, tokens, lengths), expected)


@pytest.mark.parametrize("options", [{"threads_per_rank": 2}, {"threads_per_rank": 3}, {"page_size": 7}], ids=str)
def test_neither_threads_nor_pages_change_a_bit(
    folder: Path, tmp_path: Path, dtype: str, tokens: list[int], expected: torch.Tensor, options: dict[str, int]
) -> None:
    other = StageRunner(folder, tmp_path, dtype=dtype, **options)
    assert torch.equal(in_pieces(other, tokens, [64, 64, 20, 1, 1]), expected)


def test_no_batch_changes_a_bit(runner: StageRunner, tokens: list[int], expected: torch.Tensor) -> None:
    """The sequence among seven others, which are decoded or prefilled, before it and behind it."""
    sequences = [runner.start(LENGTH, slot) for slot in range(8)]
    others = [random_tokens(LENGTH, 389, seed=20 + number) for number in range(8)]
    others[3] = tokens
    found = []
    for step in range(20):
        shares = [
            one.take(others[slot][one.length : one.length + (1 + (step + slot) % 5 if slot % 2 else 1)])
            for slot, one in enumerate(sequences)
            if (slot + step) % 3 or slot == 3
        ]
        logits = runner.step(*shares)
        found += [part for share, part in zip(shares, logits, strict=True) if share.sequence.slot == 3]
    for sequence in sequences:
        runner.end(sequence)
    together = torch.cat(found)
    assert len(together) > 40
    assert torch.equal(together, expected[: len(together)])


def test_a_snapshot_changes_no_bit(runner: StageRunner, tokens: list[int], expected: torch.Tensor) -> None:
    """Saved at a position that ends no block of 64, restored after other tokens have gone on from there."""
    sequence, worker = runner.start(LENGTH), runner.worker
    runner.step(sequence.take(tokens[:37]))
    pages = torch.tensor(sequence.pages)
    saved, row = worker.cache.save(pages, 0), worker.table.rows[0]
    runner.step(sequence.take(tokens[:50]))
    worker.cache.restore(saved, pages, 0)
    worker.table.rows[0], worker.table.host_lengths[0], sequence.length = row, 37, 37
    (found,) = runner.step(sequence.take(tokens[37:]))
    runner.end(sequence)
    assert torch.equal(found, expected[37:])


def layer(cls: type[Linear], weight: torch.Tensor, ops: ExactOperations) -> Linear:
    made = cls("test", *weight.shape, weight.dtype, ops)
    made.weight.data.copy_(weight)
    made.prepare(ops)
    return made


def example(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    x, weight = (torch.randn(size, inputs, generator=generator) for size in (rows, outputs))
    return x.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("instructions", cpu_ops.instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (33, 31), (100, 257), (400, 512)], ids=str)
def test_a_row_of_a_product_depends_on_no_other(shape: tuple[int, int], dtype: torch.dtype, instructions: str) -> None:
    """1 to 33 rows, and more than one block of them; and against float64."""
    ops, (x, weight) = ExactOperations(ONE, 2, instructions), example(150, *shape, dtype)
    for cls in (Linear, RowParallel):
        product = layer(cls, weight, ops)
        whole = ops.project(x, product, NO_BATCH)
        for rows in [*range(1, 34), 100]:
            assert torch.equal(ops.project(x[:rows], product, NO_BATCH), whole[:rows])
        magnitude = x.double().abs() @ weight.double().abs().T
        rounding = 2.0**-8 if dtype is torch.bfloat16 else 0.0
        error = (whole.double() - x.double() @ weight.double().T).abs()
        assert (error <= rounding * whole.double().abs() + (shape[1] + 2) * 2.0**-24 * magnitude).all()


def test_instruction_sets_with_a_fused_multiply_add_give_the_same_bits() -> None:
    fused = [name for name in cpu_ops.instruction_sets() if name != "baseline"]
    x, weight = example(9, 100, 256, torch.bfloat16)
    products = []
    for name in fused:
        ops = ExactOperations(ONE, 1, name)
        products.append(ops.project(x, layer(RowParallel, weight, ops), NO_BATCH))
    assert all(torch.equal(product, products[0]) for product in products)


@pytest.mark.parametrize("size", [1, 15, 16, 100, 8192])
def test_greedy_is_the_first_of_the_largest(size: int) -> None:
    """With ties, since logits come from bfloat16; beside rows of NaN, infinity, and minus infinity alone."""
    logits = torch.randn((33, size), generator=torch.Generator().manual_seed(size)).bfloat16().float()
    logits[3, size // 2], logits[4], logits[5, -1] = torch.nan, -torch.inf, torch.inf
    logits[6] = 1.5
    tokens, largest = ExactOperations(ONE, 2).greedy(logits)
    expected, values = sampling.greedy(logits)
    assert torch.equal(tokens, expected)
    assert torch.equal(largest.nan_to_num(nan=7.0), values.nan_to_num(nan=7.0))


def test_a_whole_stage_gives_the_bits_of_its_layers(
    runner: StageRunner, tokens: list[int], expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tests of this file run the layers in one call, as the engine does."""
    steps = runner.worker.steps
    assert isinstance(steps, CpuSteps)
    assert steps.whole_stage is not None
    monkeypatch.setattr(steps, "whole_stage", None)
    assert torch.equal(in_pieces(runner, tokens, [64, 63, 22, 1]), expected)


def parts_of_ranks(x: torch.Tensor, weight: torch.Tensor, tp: int) -> list[torch.Tensor]:
    """Each tensor rank's part of a row-parallel product, in float32."""
    parts, width = [], x.shape[1] // tp
    for rank in range(tp):
        ops, columns = ExactOperations(TensorShard(rank, tp), 1), slice(rank * width, (rank + 1) * width)
        product = layer(RowParallel, weight[:, columns].contiguous(), ops)
        part = ops.project(x[:, columns].contiguous(), product, NO_BATCH)
        assert part.dtype == torch.float32
        parts.append(part)
    return parts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inputs", [256, 12, 20, 1000])
def test_parts_of_ranks_add_up_to_the_bits_of_one_along_the_tree_alone(inputs: int, dtype: torch.dtype) -> None:
    x, weight = example(5, 48, inputs, dtype)
    ops = ExactOperations(ONE, 1)
    whole = ops.project(x, layer(RowParallel, weight, ops), NO_BATCH)
    a, b = parts_of_ranks(x, weight, 2)
    assert torch.equal((a + b).to(dtype), whole)
    a, b, c, d = parts_of_ranks(x, weight, 4)
    assert torch.equal(((a + b) + (c + d)).to(dtype), whole)
    if dtype is torch.float32:  # two planted faults: another order of the ranks, and another tree
        assert not torch.equal(((a + c) + (b + d)).to(dtype), whole)
        assert not torch.equal((((a + b) + c) + d).to(dtype), whole)


@pytest.mark.parametrize(("inputs", "tp"), [(256, 1), (10, 2), (5, 2), (3, 4), (7, 1)])
def test_the_shards_of_all_ranks_are_those_of_one(inputs: int, tp: int) -> None:
    """``inputs`` of a rank."""
    bounds = [bound + rank * inputs for rank in range(tp) for bound in shard_bounds(inputs, TensorShard(rank, tp))]
    assert sorted(set(bounds)) == sorted(set(shard_bounds(inputs * tp, ONE)))


def test_a_tp_that_does_not_divide_the_shards_has_one() -> None:
    assert shard_bounds(12, TensorShard(1, 3)) == [0, 12]
    assert shard_bounds(12, TensorShard(1, 8)) == [0, 12]


def test_a_bad_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction set sse9"):
        ExactOperations(ONE, 1, "sse9")


def test_pinned_threads_stay_on_their_cores() -> None:
    """In a thread of its own, whose cores end with it."""
    core = min(os.sched_getaffinity(0))

    def pinned() -> list[set[int]]:
        before = set(os.listdir("/proc/self/task"))
        ops = ExactOperations(ONE, 3)
        workers = set(os.listdir("/proc/self/task")) - before
        with pytest.raises(ValueError, match="2 cores for 3 threads"):
            ops.native.pin([core, core])
        with pytest.raises(ValueError, match="no core -1"):
            ops.native.pin([-1, core, core])
        ops.native.pin([core] * 3)
        return [os.sched_getaffinity(int(thread)) for thread in (0, *workers)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pinned).result() == [{core}] * 3
