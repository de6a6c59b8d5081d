"""The model, as one pipeline stage and tensor rank holds it. Read this file first.

``Stage.forward`` is the whole story: embed on the first stage, run this stage's layers, and on the last stage give the
logits of the rows that are to be sampled. Reference: ``transformers.models.qwen3_5_moe.modeling_qwen3_5_moe``.
"""

import torch
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.batch import Batch
from splitrank.models.config import ModelConfig
from splitrank.models.layers.decoder_layer import DecoderLayer
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.layers.rotary import RotaryEmbedding
from splitrank.models.layers.vocabulary import Embedding, Head
from splitrank.models.sharding import StageSlice, TensorShard
from splitrank.models.stage import StageState, make_layers
from splitrank.models.state import StageMemory


class Stage(nn.Module):
    """Layers of one stage, of one tensor rank; parameters are uninitialised until ``load_weights`` filled them."""

    def __init__(
        self,
        config: ModelConfig,
        stage: StageSlice,
        partition: tuple[int, ...],
        shard: TensorShard,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config, self.stage, self.dtype = config, stage, dtype
        self.rotary = RotaryEmbedding(config.rotary_dim, config.rope_theta, config.yarn)
        if stage.is_first:
            self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, shard, dtype)
        self.layers = make_layers(
            config.num_hidden_layers,
            lambda layer: DecoderLayer(config, layer, shard, dtype),
            pp_rank=stage.pp_rank,
            pp_size=stage.pp_size,
            partition=partition,
        )
        if stage.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
            self.lm_head = self._make_head(shard)

    def _make_head(self, shard: TensorShard) -> Head:
        tied = self.config.tie_word_embeddings and self.stage.is_first
        weight = self.embed_tokens.weight if tied else None
        return Head(self.config.vocab_size, self.config.hidden_size, shard, self.dtype, weight)

    def forward(
        self, batch: Batch, state: StageState | None, memory: StageMemory, collectives: Collectives
    ) -> StageState | torch.Tensor:
        """Runs one step.

        Args:
            state: from the stage before, [T, hidden_size] each; None on the first stage.

        Returns:
            The state for the next stage, or on the last stage float32 logits [len(batch.sample_rows), vocab_size].
        """
        if self.stage.is_first:
            embedded = self.embed_tokens(batch.token_ids, collectives)
            state = StageState(embedded, torch.zeros_like(embedded))
        assert state is not None
        cos_sin = self.rotary(batch.positions, self.dtype)
        for layer in self.stage.layers:
            state = self.layers[layer](state, batch, memory.layers[layer], cos_sin, collectives)
        return self.logits(state, batch, collectives) if self.stage.is_last else state

    def logits(self, state: StageState, batch: Batch, collectives: Collectives) -> torch.Tensor:
        """Final norm and head, for the sampled rows only (none in the middle of a prompt: then no head at all)."""
        if batch.sample_rows.shape[0] == 0:
            return torch.empty((0, self.config.vocab_size))
        rows = (state.residual + state.hidden).index_select(0, batch.sample_rows)
        logits: torch.Tensor = self.lm_head(self.norm(rows), collectives)
        return logits
