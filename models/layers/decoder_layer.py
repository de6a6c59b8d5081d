"""One decoder layer: norm, mixer (DeltaNet or attention), norm, mixture of experts."""

import torch
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.batch import Batch
from splitrank.models.config import FULL, ModelConfig
from splitrank.models.layers.attention import Attention, CosSin
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.sharding import TensorShard
from splitrank.models.stage import StageState
from splitrank.models.state import KVPages, LayerState, RecurrentSlots


class DecoderLayer(nn.Module):
    """Takes and gives hidden and residual apart; the sum is formed where the next norm needs it."""

    def __init__(self, config: ModelConfig, layer: int, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        if config.layer_types[layer] == FULL:
            self.self_attn = Attention(config, shard, dtype)
        else:
            self.linear_attn = LinearAttention(config, shard, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = SparseMoe(config, shard, dtype)

    def forward(
        self, state: StageState, batch: Batch, layer_state: LayerState, cos_sin: CosSin, collectives: Collectives
    ) -> StageState:
        residual = state.residual + state.hidden
        mixed = self._mix(self.input_layernorm(residual), batch, layer_state, cos_sin, collectives)
        residual = residual + mixed
        return StageState(self.mlp(self.post_attention_layernorm(residual), collectives), residual)

    def _mix(
        self,
        hidden: torch.Tensor,
        batch: Batch,
        layer_state: LayerState,
        cos_sin: CosSin,
        collectives: Collectives,
    ) -> torch.Tensor:
        if isinstance(layer_state, KVPages):
            mixed: torch.Tensor = self.self_attn(hidden, batch, layer_state, cos_sin, collectives)
        else:
            assert isinstance(layer_state, RecurrentSlots)
            mixed = self.linear_attn(hidden, batch, layer_state, collectives)
        return mixed
