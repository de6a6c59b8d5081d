"""Which ranges tensor ranks and stages get."""

from dataclasses import replace
from itertools import pairwise

import pytest

from splitrank.models.config import ModelConfig, parse_config
from splitrank.models.sharding import (
    TensorShard,
    check_partition,
    check_tensor_parallel,
    equal_partition,
    stage_slice,
)
from tests.support.checkpoints import hub_config, random_text_config


@pytest.fixture
def config() -> ModelConfig:
    return parse_config(hub_config(random_text_config(), "text", "float32", False))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("vocab_size", [8, 389, 248_320, 248_321])
def test_vocabulary_ranges_cover_it_and_differ_by_one_row_at_most(vocab_size: int, size: int) -> None:
    ranges = [TensorShard(rank, size).vocabulary(vocab_size) for rank in range(size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == vocab_size
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    lengths = [stop - start for start, stop in ranges]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("num_groups", "size", "expected"),
    [
        (4, 2, [(0, 2), (2, 4)]),
        (2, 2, [(0, 1), (1, 2)]),
        (2, 4, [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (1, 3, [(0, 1)] * 3),
        (2, 8, [(0, 1)] * 4 + [(1, 2)] * 4),
    ],
)
def test_heads_are_split_or_shared(num_groups: int, size: int, expected: list[tuple[int, int]]) -> None:
    assert [TensorShard(rank, size).groups(num_groups) for rank in range(size)] == expected


@pytest.mark.parametrize(
    ("num_layers", "pp_size", "expected"),
    [(40, 2, (20, 20)), (5, 2, (3, 2)), (7, 4, (2, 2, 2, 1)), (3, 3, (1, 1, 1)), (4, 1, (4,))],
)
def test_equal_partition(num_layers: int, pp_size: int, expected: tuple[int, ...]) -> None:
    assert equal_partition(num_layers, pp_size) == expected
    slices = [stage_slice(rank, pp_size, expected) for rank in range(pp_size)]
    assert [layer for stage in slices for layer in stage.layers] == list(range(num_layers))
    assert [stage.is_first for stage in slices] == [rank == 0 for rank in range(pp_size)]
    assert [stage.is_last for stage in slices] == [rank == pp_size - 1 for rank in range(pp_size)]


@pytest.mark.parametrize(
    ("pp_size", "partition", "words"),
    [
        (5, None, ("pp 5", "4 layers")),
        (2, (1, 2), ("[1, 2]", "sums to 3", "4 layers")),
        (2, (1, 2, 1), ("[1, 2, 1]", "3 stages", "pp is 2")),
        (2, (0, 4), ("[0, 4]", "without layers")),
    ],
)
def test_partitions_refused(pp_size: int, partition: tuple[int, ...] | None, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        check_partition(4, pp_size, partition)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("tp", "changes", "words"),
    [
        (3, {}, ("tp 3", "num_attention_heads 4")),
        (8, {}, ("tp 8", "num_attention_heads 4")),
        (4, {"linear_num_value_heads": 6}, ("tp 4", "linear_num_value_heads 6")),
        (4, {"moe_intermediate_size": 30}, ("tp 4", "moe_intermediate_size 30")),
        (4, {"shared_expert_intermediate_size": 50}, ("tp 4", "shared_expert_intermediate_size 50")),
        (
            4,
            {"num_attention_heads": 12, "num_key_value_heads": 3},
            ("tp 4", "num_key_value_heads 3", "nor is a multiple"),
        ),
        (4, {"linear_num_value_heads": 12, "linear_num_key_heads": 6}, ("tp 4", "linear_num_key_heads 6")),
        (4, {"vocab_size": 3}, ("tp 4", "vocabulary of 3")),
        (2, {"vocab_size": 2**24 + 1}, ("tp 2", "exact up to 16777216", "16777217")),
    ],
)
def test_tp_that_does_not_divide_is_refused(
    config: ModelConfig, tp: int, changes: dict[str, int], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        check_tensor_parallel(replace(config, **changes), tp)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_tp_that_divides_is_taken(config: ModelConfig, tp: int) -> None:
    check_tensor_parallel(config, tp)
