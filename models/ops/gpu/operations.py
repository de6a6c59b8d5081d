"""``Operations`` of a GPU: each verb is a few launches, chosen by the number of rows alone.

Up to ``max_few`` rows, products are our own kernels, bound by reading the weights; above, they are the vendor's. A
row's bits depend on the number of rows of the step and on nothing of its neighbours.
"""

from __future__ import annotations

import torch

from splitrank.models.cache import KVPages, RecurrentSlots
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.linear import Linear
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import GatedRMSNorm, RMSNorm
from splitrank.models.layers.rotary import RotaryEmbedding
from splitrank.models.ops.gpu import mixers
from splitrank.models.ops.gpu import projection as few_rows
from splitrank.models.ops.gpu.attention_decode import split_memory
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.embedding import embed
from splitrank.models.ops.gpu.head import argmax_blocks, head_argmax
from splitrank.models.ops.gpu.launch import INTERPRETED
from splitrank.models.ops.gpu.mixers import Angles
from splitrank.models.ops.gpu.moe import experts_of_few, experts_of_many
from splitrank.models.ops.gpu.norm import add_norm, gated_norm, sum_parts
from splitrank.models.ops.gpu.packing import interleave_gate_up, pack_router
from splitrank.models.ops.gpu.rotary import cos_sin
from splitrank.models.ops.gpu.tiles import TileTable


class GpuOperations:
    """Of one device, with the blocks of ``tiles``. ``max_decodes``: decode rows of a step at most. ``joins_parts``: the
    experts' parts are summed at once, since other tensor ranks hold parts too."""

    target = "cuda"
    takes_lone_tokens_as_decodes = True  # of prompts, behind others

    def __init__(
        self, device: torch.device, tiles: TileTable, shapes: LayerShapes, max_decodes: int, joins_parts: bool
    ) -> None:
        self.device, self.tiles, self._joins_parts = device, tiles, joins_parts
        self.max_few = self.tiles.ranges["in_proj"][-1][0]
        if max_decodes > self.max_few:
            raise ValueError(f"{max_decodes} decode rows: on a GPU a step has at most {self.max_few}")
        # A sum of many terms may not be rounded to bf16 on its way: the library would do so to save a pass.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        heads = shapes.num_heads, shapes.num_kv_heads, shapes.config.head_dim
        self._splits = split_memory(max_decodes, *heads, device)

    # ------------------------------------------------------------ memory

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def store(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def store_row_parallel(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def store_router(self, router: torch.Tensor, shared_gate_up: torch.Tensor) -> torch.Tensor:
        return pack_router(router, shared_gate_up)

    def store_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for expert in gate_up:  # one at a time, so that no second copy of all is needed
            expert.copy_(interleave_gate_up(expert))
        return gate_up, down

    # ------------------------------------------------------------ the verbs of a layer

    def embed(self, weight: torch.Tensor, batch: GpuBatch, start: int | None) -> torch.Tensor:
        out = weight.new_empty(batch.num_tokens, weight.shape[1])
        tile = self.tiles.tile("add_norm", batch.num_tokens)
        embed(batch.token_ids, batch.slots, batch.last_tokens, weight, start or 0, out, tile)
        return out

    def cos_sin(self, batch: GpuBatch, rotary: RotaryEmbedding, dtype: torch.dtype) -> Angles:
        decodes, half = batch.num_decodes, rotary.inverse_frequencies.shape[0]
        of_decodes = torch.empty((decodes, 2 * half), dtype=dtype, device=self.device)
        if decodes:
            tile = self.tiles.tile("add_norm", decodes)
            cos_sin(batch.decode_positions, rotary.inverse_frequencies, rotary.scale, of_decodes, tile)
        angles = batch.positions[decodes:, None].float() * rotary.inverse_frequencies
        return Angles(of_decodes, angles.cos() * rotary.scale, angles.sin() * rotary.scale)

    def add_norm_project(
        self, states: HiddenStates, norm: RMSNorm, projection: Linear, batch: GpuBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        projected, residual, _ = self._add_norm_project(states, norm, projection.stored, projection.name, batch)
        return projected, residual

    def _add_norm_project(
        self, states: HiddenStates, norm: RMSNorm, weight: torch.Tensor, name: str, batch: GpuBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """-> projected [T, N], the new residual and its norm [T, H]; one launch where there is one row."""
        rows = states.residual.shape[0]
        if rows != 1 or self.tiles.tile(name, rows).form != "fma":
            residual, normed = self._add_norm(states, norm)
            return self._project(normed, weight, name, batch), residual, normed
        residual, normed = torch.empty_like(states.residual), torch.empty_like(states.residual)
        projected = residual.new_empty(rows, weight.shape[0])
        few_rows.add_norm_project(
            states.residual, _parts(states), norm.weight.data, weight, projected, residual, normed, norm.eps,
            self.tiles.tile(name, rows),
        )  # fmt: skip
        return projected, residual, normed

    def _add_norm(self, states: HiddenStates, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        residual, normed = torch.empty_like(states.residual), torch.empty_like(states.residual)
        tile = self.tiles.tile("add_norm", residual.shape[0])
        add_norm(states.residual, _parts(states), norm.weight.data, residual, normed, norm.eps, tile)
        return residual, normed

    def _project(self, x: torch.Tensor, weight: torch.Tensor, name: str, batch: GpuBatch) -> torch.Tensor:
        return self._product(x, weight, name if x.shape[0] <= self.max_few else "prompt_proj")

    def _product(self, x: torch.Tensor, weight: torch.Tensor, launch: str) -> torch.Tensor:
        out = x.new_empty(x.shape[0], weight.shape[0])
        few_rows.project(x, weight, out, self.tiles.tile(launch, x.shape[0]))
        return out

    def mix_delta(
        self, projected: torch.Tensor, layer: LinearAttention, batch: GpuBatch, slots: RecurrentSlots
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return mixers.mix_delta(projected, layer, batch, slots, self.tiles)

    def norm_gate_project(
        self,
        mixed: torch.Tensor,
        gate: torch.Tensor | None,
        norm: GatedRMSNorm,
        projection: Linear,
        batch: GpuBatch,
    ) -> torch.Tensor:
        rows, weight, name = mixed.shape[0], projection.stored, projection.name
        assert gate is not None, "mix_delta gives it"
        if rows == 1 and self.tiles.tile(name, rows).form == "fma":
            out = mixed.new_empty(rows, weight.shape[0])
            tile = self.tiles.tile(name, rows)
            few_rows.gated_norm_project(mixed, gate, norm.weight.data, weight, out, norm.eps, tile)
            return out
        gated = torch.empty_like(mixed)
        gated_norm(mixed, gate, norm.weight.data, gated, norm.eps, self.tiles.tile("gated_norm", rows))
        return self._project(gated.flatten(1), weight, name, batch)

    def mix_attention(
        self, projected: torch.Tensor, layer: Attention, batch: GpuBatch, pages: KVPages, cos_sin: Angles
    ) -> torch.Tensor:
        return mixers.mix_attention(projected, layer, batch, pages, cos_sin, self._splits, self.tiles)

    def project(self, x: torch.Tensor, projection: Linear, batch: GpuBatch) -> torch.Tensor:
        return self._project(x, projection.stored, projection.name, batch)

    def experts(self, states: HiddenStates, norm: RMSNorm, layer: SparseMoe, batch: GpuBatch) -> HiddenStates:
        logits, residual, normed = self._add_norm_project(states, norm, layer.stored_router, "router", batch)
        parts = self._experts(logits, normed, layer, batch)
        return HiddenStates(self._sum_of_rank(parts) if self._joins_parts else parts, residual)

    def _sum_of_rank(self, parts: torch.Tensor) -> torch.Tensor:
        """parts [T, P, H] -> [T, H], which the all-reduce adds to other ranks'. One part is its own sum."""
        if parts.shape[1] == 1:
            return parts[:, 0]
        out = parts.new_empty(parts.shape[0], parts.shape[2])
        sum_parts(parts, out, self.tiles.tile("add_norm", parts.shape[0]))
        return out

    def _experts(self, logits: torch.Tensor, normed: torch.Tensor, layer: SparseMoe, batch: GpuBatch) -> torch.Tensor:
        """-> the parts of each row's sum, [T, 1 or k + 1, H]."""
        rows, hidden = normed.shape
        is_one = self.tiles.tile("experts_up", 1).form == "fma" and rows == 1
        parts = normed.new_empty(rows, 1 if is_one else layer.top_k + 1, hidden)
        if rows <= self.max_few:
            experts_of_few(logits, normed, layer, batch.num_live, parts, self.tiles)
        else:
            experts_of_many(logits, normed, layer, parts, self.tiles)
        return parts

    def joined(self, states: HiddenStates) -> HiddenStates:
        return HiddenStates(self._sum_of_rank(_parts(states)), states.residual)

    def head(self, states: HiddenStates, batch: GpuBatch, norm: RMSNorm, weight: torch.Tensor) -> torch.Tensor:
        if batch.sample_rows is not None:
            states = HiddenStates(*(part.index_select(0, batch.sample_rows) for part in states))
        _, normed = self._add_norm(states, norm)
        has_tile = normed.shape[0] <= self.tiles.ranges["head"][-1][0]
        return self._product(normed, weight, "head" if has_tile else "prompt_proj")

    def likeliest(
        self, states: HiddenStates, norm: RMSNorm, weight: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Final norm and the likeliest token of every row [T] int32, with its logit [T]; no logits are stored.

        ``weight`` has the vocabulary's rows from ``start`` on, of which the likeliest is found.
        """
        _, normed = self._add_norm(states, norm)
        rows = normed.shape[0]
        tile = self.tiles.tile("head", rows)
        blocks = argmax_blocks(weight.shape[0], tile)
        best = normed.new_empty(rows, blocks, dtype=torch.float32)
        at = normed.new_empty(rows, blocks, dtype=torch.int32)
        values, tokens = best.new_empty(rows), at.new_empty(rows)
        head_argmax(normed, weight, start, best, at, values, tokens, tile)
        return tokens, values


def _parts(states: HiddenStates) -> torch.Tensor:
    """``hidden`` as the norms take it, [T, P, H]: the parts of a sum that has not been formed yet, or the sum."""
    return states.hidden if states.hidden.dim() == 3 else states.hidden.unsqueeze(1)


def gpu_name(device: torch.device) -> str:
    """By which the table of tiles is chosen. Interpreted kernels take an H200's."""
    return "NVIDIA H200" if INTERPRETED else torch.cuda.get_device_name(device)
