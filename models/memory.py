"""Bytes of each rank from its plan: weights, KV per token, recurrent state per request; and what fits. No torch."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from splitrank.comm.position import MeshPosition
from splitrank.models.checkpoint import Checkpoint
from splitrank.models.config import FULL, ModelConfig
from splitrank.models.dtypes import DTYPES
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.sharding import StageSlice, TensorShard, check_partition, check_tensor_parallel, stage_slice
from splitrank.models.weight_plan import WeightPlan, plan_weights

GIB = 2**30


@dataclass(frozen=True)
class RankMemory:
    """What one rank holds, in bytes."""

    stage: StageSlice
    position: MeshPosition
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_request: int

    def total(self, tokens: int, requests: int) -> int:
        """Bytes with ``tokens`` in KV pages over all requests and ``requests`` recurrent slots."""
        return self.weight_bytes + tokens * self.kv_bytes_per_token + requests * self.state_bytes_per_request

    def tokens_that_fit(self, budget: int, requests: int) -> int | None:
        """KV tokens that fit beside weights and states; None if the stage keeps no KV, negative if they do not fit."""
        free = budget - self.total(0, requests)
        if self.kv_bytes_per_token == 0:
            return None if free >= 0 else -1
        return free // self.kv_bytes_per_token


def kv_bytes_per_token(config: ModelConfig, shard: TensorShard, dtype: str) -> int:
    """Keys and values of one token in one full-attention layer of one tensor rank."""
    return 2 * LayerShapes.of(config, shard).num_kv_heads * config.head_dim * DTYPES[dtype].num_bytes


def state_bytes_per_request(config: ModelConfig, shard: TensorShard, dtype: str, target: str = "cpu") -> int:
    """Convolution inputs (model dtype), delta state and its pending updates (float32) of one request in one layer."""
    shapes = LayerShapes.of(config, shard)
    pending = shapes.pending_updates(target)
    num_floats = prod(shapes.delta_state) + (0 if pending is None else prod(pending))
    return prod(shapes.conv_state(target)) * DTYPES[dtype].num_bytes + num_floats * DTYPES["float32"].num_bytes


def rank_memory(config: ModelConfig, plan: WeightPlan, dtype: str, target: str = "cpu") -> RankMemory:
    """Bytes of the rank of a weight plan."""
    num_full = sum(config.layer_types[layer] == FULL for layer in plan.stage.layers)
    num_linear = len(plan.stage.layers) - num_full
    return RankMemory(
        plan.stage,
        plan.position,
        plan.num_bytes,
        num_full * kv_bytes_per_token(config, plan.shard, dtype),
        num_linear * state_bytes_per_request(config, plan.shard, dtype, target),
    )


def plan_all_ranks(
    config: ModelConfig, tp_size: int, partition: tuple[int, ...], dtype: str, checkpoint: Checkpoint | None = None
) -> list[WeightPlan]:
    """Weight plans of all ranks, in rank order (stage by stage)."""
    check_tensor_parallel(config, tp_size)
    check_partition(config.num_hidden_layers, len(partition), partition)
    return [
        plan_weights(
            config, stage_slice(pp_rank, len(partition), partition), TensorShard(tp_rank, tp_size), dtype, checkpoint
        )
        for pp_rank in range(len(partition))
        for tp_rank in range(tp_size)
    ]


def balanced_partition(
    config: ModelConfig, tp_size: int, pp_size: int, dtype: str, tokens: int, requests: int, target: str = "cpu"
) -> tuple[int, ...]:
    """The layers of each stage such that the fullest stage holds the fewest bytes, with ``tokens`` of KV and
    ``requests`` slots, on a device of kind ``target``.

    Bytes are balanced, not counts, since layer types, the embedding and the head differ in size. Among partitions with
    the same maximum, the one nearest to equal counts is taken.
    """
    check_tensor_parallel(config, tp_size)
    check_partition(config.num_hidden_layers, pp_size, None)
    layers, first, last = _bytes_of_parts(config, tp_size, dtype, tokens, requests, target)
    prefix = [0]
    for layer_bytes in layers:
        prefix.append(prefix[-1] + layer_bytes)

    def stage_bytes(stage: int, start: int, stop: int) -> int:
        ends = first * (stage == 0) + last * (stage == pp_size - 1)
        return prefix[stop] - prefix[start] + ends

    limit, _ = _cheapest_split(len(layers), pp_size, stage_bytes, max)

    def unevenness(stage: int, start: int, stop: int) -> float:
        excess = (stop - start - len(layers) / pp_size) ** 2
        return float("inf") if stage_bytes(stage, start, stop) > limit else excess

    return _cheapest_split(len(layers), pp_size, unevenness, operator.add)[1]


def _bytes_of_parts(
    config: ModelConfig, tp_size: int, dtype: str, tokens: int, requests: int, target: str
) -> tuple[list[int], int, int]:
    """Bytes of each layer with its cache, of the embedding, and of head and norm (of tensor rank 0)."""
    shard, num_layers = TensorShard(0, tp_size), config.num_hidden_layers
    whole = plan_weights(config, StageSlice(0, 2, 0, num_layers), shard, dtype)  # with the embedding, without the head
    layers = [0] * num_layers
    for parameter in whole.parameters[1:]:
        layers[int(parameter.name.split(".")[1])] += parameter.num_bytes
    for layer, kind in enumerate(config.layer_types):
        layers[layer] += (
            tokens * kv_bytes_per_token(config, shard, dtype)
            if kind == FULL
            else requests * state_bytes_per_request(config, shard, dtype, target)
        )
    last = plan_weights(config, StageSlice(1, 2, num_layers, num_layers), shard, dtype)
    return layers, whole.parameters[0].num_bytes, last.num_bytes


def _cheapest_split(
    num_layers: int,
    pp_size: int,
    cost: Callable[[int, int, int], float],
    combine: Callable[[float, float], float],
) -> tuple[float, tuple[int, ...]]:
    """The contiguous split with the least combined ``cost(stage, start, stop)``, by dynamic programming over stages."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        stop: (cost(0, 0, stop), (stop,)) for stop in range(1, num_layers - pp_size + 2)
    }
    for stage in range(1, pp_size):
        best = {
            stop: min(
                (combine(value, cost(stage, start, stop)), (*counts, stop - start))
                for start, (value, counts) in best.items()
                if start < stop
            )
            for stop in range(stage + 1, num_layers - (pp_size - stage) + 2)
        }
    return best[num_layers]
