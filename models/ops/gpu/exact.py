"""``Operations`` of a GPU whose sums have one order each: a request's bits depend on its own tokens and nothing else.

The kernels are those of ``GpuOperations``, at one tile a launch (the table's section ``exact``). Prompt tokens and
generated tokens have kernels of their own everywhere, also where a step has both: so neither the other rows of a step
nor the chunks of a prompt decide which kernel a token meets.

The inputs of a row-parallel product are cut into four shards, whatever tp is. Shards are added in float32 along a
binary tree, of which a tensor rank holds a subtree; the all-reduce adds along the same tree, and the norm that comes
next rounds the sum. A shard's parts are rounded to the model's dtype, as the experts' are.
Legend: T rows, H hidden size, k experts a row.
"""

import torch

from splitrank.models.exactness import SHARDS
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.ops.gpu import projection as products
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.moe import experts_of_few, experts_of_many
from splitrank.models.ops.gpu.norm import add_norm, sum_parts
from splitrank.models.ops.gpu.operations import GpuOperations
from splitrank.models.ops.gpu.tiles import TileTable

_ROW_PARALLEL = ("o_proj", "out_proj")


class ExactGpuOperations(GpuOperations):
    """``tiles`` are those of ``load_tiles(..., exact=True)``."""

    takes_lone_tokens_as_decodes = False

    def __init__(
        self, device: torch.device, tiles: TileTable, shapes: LayerShapes, max_decodes: int, joins_parts: bool
    ) -> None:
        super().__init__(device, tiles, shapes, max_decodes, joins_parts)
        tp_size = shapes.config.num_attention_heads // shapes.num_heads
        self._shards, self._is_part = SHARDS // tp_size, tp_size > 1

    def _project(self, x: torch.Tensor, weight: torch.Tensor, name: str, batch: GpuBatch) -> torch.Tensor:
        """-> [T, N]; of a row-parallel weight the parts [T, shards, N], or their sum where other ranks have parts."""
        is_row_parallel = name in _ROW_PARALLEL
        out = x.new_empty(x.shape[0], *([self._shards] if is_row_parallel else []), weight.shape[0])
        decodes, prompts = _rows_by_kind(batch)
        for rows, launch in ((decodes, name), (prompts, "prompt_proj")):
            if count := rows.stop - rows.start:
                products.project(x[rows], weight, out[rows], self.tiles.tile(launch, count))
        return self._sum_of_rank(out) if is_row_parallel and self._is_part else out

    def _experts(self, logits: torch.Tensor, normed: torch.Tensor, layer: SparseMoe, batch: GpuBatch) -> torch.Tensor:
        """-> [T, shards (k + 1), H]."""
        parts = normed.new_empty(normed.shape[0], self._shards * (layer.top_k + 1), normed.shape[1])
        decodes, prompts = _rows_by_kind(batch)
        if decodes.stop:
            part = logits[decodes], normed[decodes], layer, batch.num_live, parts[decodes]
            experts_of_few(*part, self.tiles, self._shards)
        if prompts.start < prompts.stop:
            experts_of_many(logits[prompts], normed[prompts], layer, parts[prompts], self.tiles, self._shards)
        return parts

    def _sum_of_rank(self, parts: torch.Tensor) -> torch.Tensor:
        out = parts.new_empty(parts.shape[0], parts.shape[2], dtype=torch.float32 if self._is_part else parts.dtype)
        sum_parts(parts, out, self.tiles.tile("add_norm", parts.shape[0]), self._shards)
        return out

    def joined(self, states: HiddenStates) -> HiddenStates:
        hidden = states.hidden if states.hidden.dim() == 2 else self._sum_of_rank(states.hidden)
        return HiddenStates(hidden.to(states.residual.dtype), states.residual)

    def _add_norm(self, states: HiddenStates, norm: RMSNorm) -> tuple[torch.Tensor, torch.Tensor]:
        residual, normed = torch.empty_like(states.residual), torch.empty_like(states.residual)
        is_sum = states.hidden.dim() == 2
        parts, shards = (states.hidden[:, None], 1) if is_sum else (states.hidden, self._shards)
        tile = self.tiles.tile("add_norm", residual.shape[0])
        add_norm(states.residual, parts, norm.weight.data, residual, normed, norm.eps, tile, shards)
        return residual, normed


def _rows_by_kind(batch: GpuBatch) -> tuple[slice, slice]:
    """Rows of generated tokens, and rows of prompts."""
    return slice(0, batch.num_decodes), slice(batch.num_decodes, batch.num_tokens)
