"""Bytes from the config alone, and the partition that balances them."""

from itertools import combinations, pairwise
from typing import Any

import pytest

from splitrank.models.config import ModelConfig, parse_config
from splitrank.models.memory import RankMemory, balanced_partition, plan_all_ranks, rank_memory
from tests.support.checkpoints import hub_config, random_text_config

SHAPES: list[dict[str, Any]] = [
    {"num_hidden_layers": 5},
    {"num_hidden_layers": 8, "vocab_size": 4096},
    {"num_hidden_layers": 7, "head_dim": 128, "num_key_value_heads": 4},
    {"num_hidden_layers": 6, "tie_word_embeddings": True, "linear_key_head_dim": 64, "linear_value_head_dim": 64},
]
LOADS = [(0, 1), (100_000, 4), (64, 2_000)]  # KV tokens, requests


def config_of(**shape: Any) -> ModelConfig:
    config = random_text_config(**shape)
    return parse_config(hub_config(config, "text", "bfloat16", bool(config.tie_word_embeddings)))


def partitions(num_layers: int, pp: int) -> list[tuple[int, ...]]:
    borders = ((0, *inner, num_layers) for inner in combinations(range(1, num_layers), pp - 1))
    return [tuple(b - a for a, b in pairwise(cut)) for cut in borders]


def ranks_of(config: ModelConfig, tp: int, partition: tuple[int, ...], target: str = "cpu") -> list[RankMemory]:
    plans = plan_all_ranks(config, tp, partition, "bfloat16")
    return [rank_memory(config, plan, "bfloat16", target) for plan in plans]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("load", LOADS, ids=str)
@pytest.mark.parametrize("pp", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_balanced_partition_is_the_best_of_all(
    shape: dict[str, Any], pp: int, load: tuple[int, int], target: str
) -> None:
    config = config_of(**shape)
    for tp in (1, 2):

        def cost(partition: tuple[int, ...], tp: int = tp) -> tuple[int, float]:
            """Bytes of the fullest rank 0 of a stage, then the distance from equal counts."""
            fullest = max(rank.total(*load) for rank in ranks_of(config, tp, partition, target)[::tp])
            return fullest, sum((count - config.num_hidden_layers / pp) ** 2 for count in partition)

        found = balanced_partition(config, tp, pp, "bfloat16", *load, target)
        best = min(map(cost, partitions(config.num_hidden_layers, pp)))
        assert cost(found)[0] == best[0]
        assert cost(found)[1] == pytest.approx(best[1])


def test_a_gpu_is_balanced_by_its_own_bytes_a_request() -> None:
    """Its states are larger, by the updates that they lack: with many requests, another partition is the best."""
    config, load = parse_config({"model_type": "qwen3_5_moe_text"}), (512 * 2048, 512)  # the 35B's shape
    found = {target: balanced_partition(config, 1, 6, "bfloat16", *load, target) for target in ("cpu", "cuda")}
    assert found["cpu"] != found["cuda"]
    for target in found:
        fullest = {one: max(rank.total(*load) for rank in ranks_of(config, 1, found[one], target)) for one in found}
        assert fullest[target] == min(fullest.values())


def test_layers_that_weigh_the_same_are_split_into_equal_counts() -> None:
    config = config_of(num_hidden_layers=8, layer_types=["full_attention"] * 8, tie_word_embeddings=True)
    assert balanced_partition(config, 1, 2, "bfloat16", 0, 1) == (4, 4)
    assert balanced_partition(config, 1, 4, "bfloat16", 0, 1) == (2, 2, 2, 2)


def test_a_large_head_and_long_contexts_move_layers() -> None:
    head_heavy = config_of(num_hidden_layers=8, vocab_size=100_000)
    assert balanced_partition(head_heavy, 1, 3, "bfloat16", 0, 1) == (1, 6, 1)
    layer_types = ["full_attention"] * 2 + ["linear_attention"] * 6
    kv_heavy = config_of(num_hidden_layers=8, layer_types=layer_types, vocab_size=300)
    assert balanced_partition(kv_heavy, 1, 2, "bfloat16", 10**7, 1) == (1, 7)


def test_all_stages_together_hold_what_one_holds() -> None:
    config = config_of(num_hidden_layers=7)
    (whole,) = ranks_of(config, 1, (7,))
    parts = ranks_of(config, 1, (2, 4, 1))
    assert sum(part.weight_bytes for part in parts) == whole.weight_bytes
    assert sum(part.kv_bytes_per_token for part in parts) == whole.kv_bytes_per_token
    assert sum(part.state_bytes_per_request for part in parts) == whole.state_bytes_per_request


def test_a_tied_head_is_a_second_copy_once_it_is_on_another_stage() -> None:
    config = config_of(tie_word_embeddings=True, vocab_size=500)
    whole, parts = ranks_of(config, 1, (4,)), ranks_of(config, 1, (2, 2))
    assert sum(part.weight_bytes for part in parts) - whole[0].weight_bytes == 500 * 64 * 2


def test_shared_kv_heads_are_counted_on_each_rank_that_keeps_them() -> None:
    config = config_of(num_key_value_heads=2)  # 4 layers, one of full attention; head_dim 32; bfloat16
    per_head = 2 * 32 * 2
    assert [ranks_of(config, tp, (4,))[0].kv_bytes_per_token for tp in (1, 2, 4)] == [2 * per_head, per_head, per_head]


def test_what_fits() -> None:
    rank = ranks_of(config_of(), 1, (4,))[0]
    budget = rank.total(tokens=1000, requests=3)
    assert rank.tokens_that_fit(budget, 3) == 1000
    assert rank.tokens_that_fit(budget - 1, 3) == 999
    assert rank.tokens_that_fit(budget, 2) > 1000  # type: ignore[operator]
    assert rank.tokens_that_fit(rank.weight_bytes - 1, 0) == -1
    without_kv = ranks_of(config_of(), 1, (3, 1))[0]
    assert without_kv.kv_bytes_per_token == 0
    assert without_kv.tokens_that_fit(without_kv.total(0, 2), 2) is None
    assert without_kv.tokens_that_fit(without_kv.total(0, 2) - 1, 2) == -1
