"""``Operations`` of a CPU whose sums have one order each: a token's bits depend on the tokens before it and on nothing
else, neither on the step's other rows, nor on chunks, threads, pipeline stages or 1, 2 or 4 tensor ranks.

The operations are in csrc/cpu. Activations are rounded to the model's dtype where one verb hands them to another; at
tp > 1 a rank's part of a sum is float32, and it is rounded once, after the all-reduce, by the norm that comes next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from splitrank import _cpu_ops as cpu_ops
from splitrank.models.batch import Batch
from splitrank.models.cache import KVPages, RecurrentSlots
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.linear import Linear
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import GatedRMSNorm, RMSNorm
from splitrank.models.layers.rotary import RotaryEmbedding
from splitrank.models.ops.cpu import native, spans
from splitrank.models.ops.cpu.descriptions import (
    describe_attention,
    describe_delta,
    describe_experts,
    describe_norm,
)
from splitrank.models.ops.cpu.host import HostMemory
from splitrank.models.ops.cpu.native import StoredExperts, StoredRouter, Weight, values
from splitrank.models.sharding import TensorShard

LayerT = TypeVar("LayerT", bound=nn.Module)
CacheT = TypeVar("CacheT", KVPages, RecurrentSlots, None)
DescribedT = TypeVar("DescribedT")


@dataclass(frozen=True)
class StepPositions:
    """What attention needs of a step: cosines and sines [T, rotary_dim] in float32, and the rows of each sequence."""

    cos_sin: torch.Tensor
    spans: list[spans.Span]


class ExactOperations(HostMemory):
    """The operations of one rank. It computes with ``num_threads`` threads, of which the caller is one."""

    def __init__(self, shard: TensorShard, num_threads: int, instruction_set: str = "") -> None:
        self.shard = shard
        self.native = cpu_ops.Operations(num_threads, instruction_set)
        self._described: WeakKeyDictionary[nn.Module, tuple[object, object]] = WeakKeyDictionary()

    # ------------------------------------------------------------ weights

    def store(self, weight: torch.Tensor) -> Weight:
        return native.pack(self.native, weight)

    def store_row_parallel(self, weight: torch.Tensor) -> Weight:
        return native.pack(self.native, weight, native.shard_bounds(weight.shape[1], self.shard))

    def store_router(self, router: torch.Tensor, shared_gate_up: torch.Tensor) -> StoredRouter:
        return StoredRouter(self.store(router), native.pack_gate_up(self.native, shared_gate_up[None]))

    def store_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> StoredExperts:
        bounds = native.shard_bounds(down.shape[-1], self.shard)
        return StoredExperts(native.pack_gate_up(self.native, gate_up), native.pack_down(self.native, down, bounds))

    # ------------------------------------------------------------ the verbs of a layer

    def cos_sin(self, batch: Batch, rotary: RotaryEmbedding, dtype: torch.dtype) -> StepPositions:
        return StepPositions(self.positions(batch, rotary), spans.with_slots_and_pages(batch))

    def positions(self, batch: Batch, rotary: RotaryEmbedding) -> torch.Tensor:
        """Cosines, then sines, of the rows' positions: [T, rotary_dim] in float32."""
        frequencies = rotary.inverse_frequencies
        cos_sin = torch.empty((batch.num_tokens, 2 * len(frequencies)))
        positions = batch.positions.contiguous()
        self.native.cos_sin(
            positions.data_ptr(),
            batch.num_tokens,
            frequencies.data_ptr(),
            len(frequencies),
            rotary.scale,
            cos_sin.data_ptr(),
        )
        return cos_sin

    def add_norm_project(
        self, states: HiddenStates, norm: RMSNorm, projection: Linear, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._add_norm_linear(states, norm, projection.stored)

    def mix_delta(
        self, projected: torch.Tensor, layer: LinearAttention, batch: Batch, slots: RecurrentSlots
    ) -> tuple[torch.Tensor, None]:
        shapes, config = layer.shapes, layer.shapes.config
        out = torch.empty((len(projected), shapes.value_dim), dtype=projected.dtype)
        described = self._once(layer, slots, describe_delta)
        for part in spans.between_copies(batch, slots):
            self.native.delta(values(projected), len(projected), part, described, values(out))
        return out.view(-1, shapes.num_value_heads, config.linear_value_head_dim), None

    def norm_gate_project(
        self,
        mixed: torch.Tensor,
        gate: torch.Tensor | None,
        norm: GatedRMSNorm,
        projection: Linear,
        batch: Batch,
    ) -> torch.Tensor:
        return self._product(mixed.flatten(1), projection)

    def mix_attention(
        self, projected: torch.Tensor, layer: Attention, batch: Batch, pages: KVPages, cos_sin: StepPositions
    ) -> torch.Tensor:
        shapes, config = layer.shapes, layer.shapes.config
        out = torch.empty((len(projected), shapes.num_heads * config.head_dim), dtype=projected.dtype)
        described = self._once(layer, pages, lambda *_: describe_attention(layer, pages, cos_sin.cos_sin.shape[1]))
        self.native.attention(
            values(projected),
            len(projected),
            cos_sin.spans,
            batch.kv_index.data_ptr(),
            cos_sin.cos_sin.data_ptr(),
            described,
            values(out),
        )
        return out

    def project(self, x: torch.Tensor, projection: Linear, batch: Batch) -> torch.Tensor:
        return self._product(x, projection)

    def _product(self, x: torch.Tensor, projection: Linear) -> torch.Tensor:
        weight: Weight = projection.stored
        out = torch.empty((len(x), weight.num_outputs), dtype=self._part_dtype(x.dtype))
        self.native.linear(values(x), len(x), weight.native, values(out))
        return out

    def experts(self, states: HiddenStates, norm: RMSNorm, layer: SparseMoe, batch: Batch) -> HiddenStates:
        stream, residual = self._stream(states, norm)
        described = self._once(layer, None, lambda *_: describe_experts(layer))
        out = torch.empty(residual.shape, dtype=self._part_dtype(residual.dtype))
        self.native.experts(stream, described, values(out))
        return HiddenStates(out, residual)

    def joined(self, states: HiddenStates) -> HiddenStates:
        return HiddenStates(states.hidden.to(states.residual.dtype), states.residual)

    def head(self, states: HiddenStates, batch: Batch, norm: RMSNorm, weight: Weight | torch.Tensor) -> torch.Tensor:
        chosen = HiddenStates(*(part.index_select(0, batch.sample_rows) for part in states))
        stored = native.plain_weight(weight) if isinstance(weight, torch.Tensor) else weight
        return self._add_norm_linear(chosen, norm, stored)[0]

    def greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``sampling.greedy`` of logits [S, V] in float32, in one call instead of ten."""
        num_rows, num_logits = logits.shape
        logits, tokens = logits.contiguous(), torch.empty(num_rows, dtype=torch.int64)
        largest = torch.empty(num_rows)
        self.native.greedy(logits.data_ptr(), num_rows, num_logits, tokens.data_ptr(), largest.data_ptr())
        return tokens, largest

    # ------------------------------------------------------------

    def _part_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of this rank's part of a sum over tensor ranks: float32, unless the part is the whole sum."""
        return dtype if self.shard.size == 1 else torch.float32

    def _add_norm_linear(
        self, states: HiddenStates, norm: RMSNorm, weight: Weight
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stream, residual = self._stream(states, norm)
        out = torch.empty((len(residual), weight.num_outputs), dtype=residual.dtype)
        self.native.add_norm_linear(stream, weight.native, values(out))
        return out, residual

    def _stream(self, states: HiddenStates, norm: RMSNorm) -> tuple[cpu_ops.Stream, torch.Tensor]:
        """The input of an operation that begins with add and norm, and the new residual, which that operation fills."""
        residual = torch.empty_like(states.residual)
        rows, width = residual.shape
        tensors = values(states.hidden), values(states.residual), values(residual)
        return cpu_ops.Stream(*tensors, rows, width, self._once(norm, None, lambda *_: describe_norm(norm))), residual

    def _once(self, layer: LayerT, cache: CacheT, describe: Callable[[LayerT, CacheT], DescribedT]) -> DescribedT:
        """What the operations need to know of a layer and its cache: made once, since a step of one token would spend a
        tenth of its time in making it. Weights and caches stay where they are after loading."""
        known = self._described.get(layer)
        if known is None or known[0] is not cache:
            known = self._described[layer] = (cache, describe(layer, cache))
        return cast(DescribedT, known[1])
