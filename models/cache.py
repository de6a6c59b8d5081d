"""A rank's caches: KV pages of full-attention layers, recurrent slots of DeltaNet layers.

They are allocated once, with the sizes of the launch spec, for the layers of this stage. The scheduler assigns pages
and slots to requests; a rank reads and writes those that a step plan names.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from splitrank.models.config import FULL, ModelConfig
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.ops.operations import Operations
from splitrank.models.sharding import StageSlice, TensorShard


@dataclass(frozen=True)
class KVPages:
    """Keys and values of one layer, each [num_pages, page_size, local_num_kv_heads, head_dim]."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.keys, self.values


@dataclass(frozen=True)
class RecurrentSlots:
    """DeltaNet state of one layer.

    ``conv`` [num_slots, kernel - 1, local_conv_dim] in the model's dtype: the last inputs of the convolution (on a GPU
    a ring [num_slots, kernel, local_conv_dim], the input of position p at p mod kernel);
    ``delta`` [num_slots, local_num_value_heads, key_head_dim, value_head_dim] in float32;
    ``pending`` on a GPU: the updates that ``delta`` lacks (``LayerShapes.pending_updates``), [num_slots, 7, width] in
    float32.
    """

    conv: torch.Tensor
    delta: torch.Tensor
    pending: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.conv, self.delta) if self.pending is None else (self.conv, self.delta, self.pending)

    def copy_of(self, slot: int) -> tuple[torch.Tensor, ...]:
        """One sequence's state, as ``StageCache.save_inside`` takes it."""
        return tuple(tensor[slot].clone() for tensor in self.tensors)


LayerCache = KVPages | RecurrentSlots


class StageCache:
    """The caches of all layers of a stage, by global layer index."""

    def __init__(
        self,
        config: ModelConfig,
        stage: StageSlice,
        shard: TensorShard,
        dtype: torch.dtype,
        num_pages: int,
        page_size: int,
        num_slots: int,
        ops: Operations,
    ) -> None:
        self.page_size = page_size
        shapes = LayerShapes.of(config, shard)
        self.layers: dict[int, LayerCache] = {
            layer: _kv_pages(shapes, dtype, num_pages, page_size, ops)
            if config.layer_types[layer] == FULL
            else _recurrent_slots(shapes, dtype, num_slots, ops)
            for layer in stage.layers
        }

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for cache in self.layers.values() for tensor in cache.tensors)

    def save(self, pages: torch.Tensor, slot: int) -> list[torch.Tensor]:
        """Copies one sequence's pages and slot out, layer by layer, on the device."""
        return list(self._copies(pages, slot))

    def save_to_host(self, pages: torch.Tensor, slot: int) -> list[torch.Tensor]:
        """The same into host memory, one tensor at a time."""
        return [copy.to("cpu") for copy in self._copies(pages, slot)]

    def _copies(self, pages: torch.Tensor, slot: int) -> Iterator[torch.Tensor]:
        """Indexing by a tensor of pages copies; by one slot it is a view."""
        for cache, tensor in self._walk():
            yield tensor[pages] if isinstance(cache, KVPages) else tensor[slot].clone()

    def save_inside(self, pages: torch.Tensor, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """What ``save`` would have returned at the position in the last chunk at which the layers copied ``states``.

        The last page may hold later tokens, too. A request that begins at the position overwrites them before it reads.
        """
        rest = iter(states)
        return [tensor[pages] if isinstance(cache, KVPages) else next(rest) for cache, tensor in self._walk()]

    def restore(self, saved: list[torch.Tensor], pages: torch.Tensor, slot: int) -> None:
        """Copies what ``save`` returned into other pages and another slot, bit for bit."""
        for (cache, tensor), copy in zip(self._walk(), saved, strict=True):
            tensor[pages if isinstance(cache, KVPages) else slot] = copy.to(tensor.device)

    def _walk(self) -> list[tuple[LayerCache, torch.Tensor]]:
        return [(cache, tensor) for cache in self.layers.values() for tensor in cache.tensors]


def _kv_pages(shapes: LayerShapes, dtype: torch.dtype, num_pages: int, page_size: int, ops: Operations) -> KVPages:
    shape = (num_pages, page_size, shapes.num_kv_heads, shapes.config.head_dim)
    return KVPages(ops.zeros(*shape, dtype=dtype), ops.zeros(*shape, dtype=dtype))


def _recurrent_slots(shapes: LayerShapes, dtype: torch.dtype, num_slots: int, ops: Operations) -> RecurrentSlots:
    pending = shapes.pending_updates(ops.target)
    return RecurrentSlots(
        ops.zeros(num_slots, *shapes.conv_state(ops.target), dtype=dtype),
        ops.zeros(num_slots, *shapes.delta_state, dtype=torch.float32),
        None if pending is None else ops.zeros(num_slots, *pending, dtype=torch.float32),
    )
