"""One decoder layer: norm, mixer (DeltaNet or attention), norm, mixture of experts."""

import torch
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.cache import KVPages, LayerCache
from splitrank.models.config import FULL
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.ops.operations import CosSin, DeviceBatch, Operations


class DecoderLayer(nn.Module):
    """Takes and returns hidden and residual separately; the next norm adds them."""

    def __init__(self, shapes: LayerShapes, layer: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        config = shapes.config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, ops)
        if config.layer_types[layer] == FULL:
            self.self_attn = Attention(shapes, dtype, ops)
        else:
            self.linear_attn = LinearAttention(shapes, dtype, ops)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, ops)
        self.mlp = SparseMoe(shapes, dtype, ops)

    def forward(
        self,
        states: HiddenStates,
        batch: DeviceBatch,
        cache: LayerCache,
        cos_sin: CosSin,
        ops: Operations,
        collectives: Collectives,
    ) -> HiddenStates:
        """Runs the layer. Its two all-reduces over the tensor ranks are here and nowhere else."""
        if isinstance(cache, KVPages):
            states = self.self_attn(states, self.input_layernorm, batch, cache, cos_sin, ops)
        else:
            states = self.linear_attn(states, self.input_layernorm, batch, cache, ops)
        states = HiddenStates(collectives.all_reduce_(states.hidden), states.residual)
        states = ops.experts(states, self.post_attention_layernorm, self.mlp, batch)
        return HiddenStates(collectives.all_reduce_(states.hidden), states.residual)
