"""A rank's memory of its sequences: KV pages of full-attention layers, recurrent slots of DeltaNet layers.

Allocated once, from the numbers of the plan; only layers of this stage have any. Pages and slots are handed out by the
scheduler; the rank only reads and writes where a step plan points.
"""

from dataclasses import dataclass

import torch

from splitrank.models.config import FULL, ModelConfig
from splitrank.models.sharding import StageSlice, TensorShard


@dataclass(frozen=True)
class KVPages:
    """Keys and values of one layer, each [num_pages, page_size, local_num_kv_heads, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class RecurrentSlots:
    """DeltaNet state of one layer.

    ``conv`` [num_slots, kernel - 1, local_conv_dim] in the model's dtype: the last inputs of the convolution;
    ``delta`` [num_slots, local_num_value_heads, key_head_dim, value_head_dim] in float32.
    """

    conv: torch.Tensor
    delta: torch.Tensor


LayerState = KVPages | RecurrentSlots


class StageMemory:
    """State of all layers of a stage, by global layer index."""

    def __init__(
        self,
        config: ModelConfig,
        stage: StageSlice,
        shard: TensorShard,
        dtype: torch.dtype,
        num_pages: int,
        page_size: int,
        num_slots: int,
    ) -> None:
        self.page_size = page_size
        self.layers: dict[int, LayerState] = {
            layer: _kv_pages(config, shard, dtype, num_pages, page_size)
            if config.layer_types[layer] == FULL
            else _recurrent_slots(config, shard, dtype, num_slots)
            for layer in stage.layers
        }

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for state in self.layers.values() for tensor in _tensors(state))

    def save(self, pages: torch.Tensor, slot: int) -> list[torch.Tensor]:
        """Copies one sequence's pages and slot out (to host memory), layer by layer."""
        return [tensor[pages if isinstance(state, KVPages) else slot].clone() for state, tensor in self._walk()]

    def save_inside(self, pages: torch.Tensor, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """What ``save`` would have returned inside the chunk just computed, where the layers copied ``states``.

        The last page may hold tokens from behind that place; whoever begins there writes over them before reading.
        """
        rest = iter(states)
        return [tensor[pages].clone() if isinstance(state, KVPages) else next(rest) for state, tensor in self._walk()]

    def restore(self, saved: list[torch.Tensor], pages: torch.Tensor, slot: int) -> None:
        """Copies what ``save`` returned back, into other pages and another slot: the same bits."""
        for (state, tensor), copy in zip(self._walk(), saved, strict=True):
            tensor[pages if isinstance(state, KVPages) else slot] = copy

    def _walk(self) -> list[tuple[LayerState, torch.Tensor]]:
        return [(state, tensor) for state in self.layers.values() for tensor in _tensors(state)]


def _tensors(state: LayerState) -> tuple[torch.Tensor, torch.Tensor]:
    return (state.keys, state.values) if isinstance(state, KVPages) else (state.conv, state.delta)


def _kv_pages(config: ModelConfig, shard: TensorShard, dtype: torch.dtype, num_pages: int, page_size: int) -> KVPages:
    start, stop = shard.groups(config.num_key_value_heads)
    shape = (num_pages, page_size, stop - start, config.head_dim)
    return KVPages(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))


def _recurrent_slots(config: ModelConfig, shard: TensorShard, dtype: torch.dtype, num_slots: int) -> RecurrentSlots:
    k_start, k_stop = shard.groups(config.linear_num_key_heads)
    v_start, v_stop = shard.even(config.linear_num_value_heads)
    k_dim, v_dim = config.linear_key_head_dim, config.linear_value_head_dim
    conv_dim = 2 * (k_stop - k_start) * k_dim + (v_stop - v_start) * v_dim
    return RecurrentSlots(
        torch.zeros((num_slots, config.linear_conv_kernel_dim - 1, conv_dim), dtype=dtype),
        torch.zeros((num_slots, v_stop - v_start, k_dim, v_dim), dtype=torch.float32),
    )
