"""``Operations`` of a GPU whose sums have one order each: a request's bits depend on its own tokens and nothing else.

The kernels are those of ``GpuOperations``, at one tile a launch (the table's section ``exact``). Prompt tokens and
generated tokens have kernels of their own everywhere, also where a step has both: so neither the other rows of a step
nor the chunks of a prompt decide which kernel a token meets.
"""

import torch

from splitrank.models.layers.moe import SparseMoe
from splitrank.models.ops.gpu import projection as products
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.moe import experts_of_few, experts_of_many
from splitrank.models.ops.gpu.operations import GpuOperations


class ExactGpuOperations(GpuOperations):
    """``tiles`` are those of ``load_tiles(..., exact=True)``."""

    takes_lone_tokens_as_decodes = False

    def _project(self, x: torch.Tensor, weight: torch.Tensor, name: str, batch: GpuBatch) -> torch.Tensor:
        out = x.new_empty(x.shape[0], weight.shape[0])
        decodes, prompts = _rows_by_kind(batch)
        for rows, launch in ((decodes, name), (prompts, "prompt_proj")):
            if count := rows.stop - rows.start:
                products.project(x[rows], weight, out[rows], self.tiles.tile(launch, count))
        return out

    def _experts(self, logits: torch.Tensor, normed: torch.Tensor, layer: SparseMoe, batch: GpuBatch) -> torch.Tensor:
        parts = normed.new_empty(normed.shape[0], layer.top_k + 1, normed.shape[1])
        decodes, prompts = _rows_by_kind(batch)
        if decodes.stop:
            experts_of_few(logits[decodes], normed[decodes], layer, batch.num_live, parts[decodes], self.tiles)
        if prompts.start < prompts.stop:
            experts_of_many(logits[prompts], normed[prompts], layer, parts[prompts], self.tiles)
        return parts


def _rows_by_kind(batch: GpuBatch) -> tuple[slice, slice]:
    """Rows of generated tokens, and rows of prompts."""
    return slice(0, batch.num_decodes), slice(batch.num_decodes, batch.num_tokens)
