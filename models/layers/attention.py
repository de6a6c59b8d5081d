"""Gated full attention over paged keys and values, split by heads (reference: ``Qwen3_5MoeAttention``)."""

import torch
from torch import nn

from splitrank.models.cache import KVPages
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.linear import Linear, RowParallel
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.ops.operations import CosSin, DeviceBatch, Operations


class Attention(nn.Module):
    """Query and gate are interleaved per head. q and k have a norm per head and partial rotary; the output is gated."""

    def __init__(self, shapes: LayerShapes, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        config = shapes.config
        self.shapes = shapes
        self.qkv_proj = Linear("qkv_proj", sum(shapes.qkv_widths), config.hidden_size, dtype, ops)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype, ops)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype, ops)
        self.o_proj = RowParallel("o_proj", config.hidden_size, shapes.num_heads * config.head_dim, dtype, ops)

    def forward(
        self, states: HiddenStates, norm: RMSNorm, batch: DeviceBatch, pages: KVPages, cos_sin: CosSin, ops: Operations
    ) -> HiddenStates:
        """``hidden``: this rank's partial sum of the output projection; and the new residual."""
        projected, residual = ops.add_norm_project(states, norm, self.qkv_proj, batch)
        mixed = ops.mix_attention(projected, self, batch, pages, cos_sin)
        return HiddenStates(ops.project(mixed, self.o_proj, batch), residual)
