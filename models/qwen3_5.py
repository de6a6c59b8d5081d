"""The model, as one pipeline stage and tensor rank holds it. Read this file first.

``Stage.forward`` embeds the tokens on the first stage, runs the layers of its stage, and on the last stage returns the
logits of the rows that are sampled. Reference: ``transformers.models.qwen3_5_moe.modeling_qwen3_5_moe``.
"""

import torch
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.cache import StageCache
from splitrank.models.config import ModelConfig
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.decoder_layer import DecoderLayer
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.layers.rotary import RotaryEmbedding
from splitrank.models.layers.vocabulary import Embedding, Head
from splitrank.models.ops.operations import DeviceBatch, Operations
from splitrank.models.sharding import StageSlice, TensorShard
from splitrank.models.stage import make_layers


class Stage(nn.Module):
    """The layers of one stage, on one tensor rank. ``load_weights`` fills the parameters."""

    def __init__(
        self,
        config: ModelConfig,
        stage: StageSlice,
        partition: tuple[int, ...],
        shard: TensorShard,
        dtype: torch.dtype,
        ops: Operations,
    ) -> None:
        super().__init__()
        self.config, self.stage, self.dtype, self.ops = config, stage, dtype, ops
        self.rotary = RotaryEmbedding(config.rotary_dim, config.rope_theta, config.yarn, ops.device)
        shapes = LayerShapes.of(config, shard)
        if stage.is_first:
            self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, shard, dtype, ops)
        self.layers = make_layers(
            config.num_hidden_layers,
            lambda layer: DecoderLayer(shapes, layer, dtype, ops),
            pp_rank=stage.pp_rank,
            pp_size=stage.pp_size,
            partition=partition,
        )
        if stage.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, ops)
            self.lm_head = self._make_head(shard)

    def _make_head(self, shard: TensorShard) -> Head:
        tied = self.config.tie_word_embeddings and self.stage.is_first
        weight = self.embed_tokens.weight if tied else None
        return Head(self.config.vocab_size, self.config.hidden_size, shard, self.dtype, self.ops, weight)

    def forward(
        self, batch: DeviceBatch, states: HiddenStates | None, cache: StageCache, collectives: Collectives
    ) -> HiddenStates | torch.Tensor:
        """Runs one step.

        Args:
            states: from the stage before, [T, hidden_size] each; None on the first stage.

        Returns:
            The states for the next stage, or on the last stage logits [batch.num_samples, vocab_size], in the model's
            dtype.
        """
        states = self.run_layers(batch, states, cache, collectives)
        return self.logits(states, batch, collectives) if self.stage.is_last else self.ops.joined(states)

    def run_layers(
        self, batch: DeviceBatch, states: HiddenStates | None, cache: StageCache, collectives: Collectives
    ) -> HiddenStates:
        """Embedding, if this is the first stage, and all layers."""
        if self.stage.is_first:
            embedded = self.embed_tokens(batch, self.ops, collectives)
            states = HiddenStates(embedded, torch.zeros_like(embedded))
        assert states is not None
        cos_sin = self.ops.cos_sin(batch, self.rotary, self.dtype)
        for layer in self.stage.layers:
            states = self.layers[layer](states, batch, cache.layers[layer], cos_sin, self.ops, collectives)
        return states

    def logits(self, states: HiddenStates, batch: DeviceBatch, collectives: Collectives) -> torch.Tensor:
        """Final norm and head, for the sampled rows only. A step without any (of unfinished prompts) skips the head."""
        if batch.num_samples == 0:
            return torch.empty((0, self.config.vocab_size), dtype=self.dtype, device=self.ops.device)
        logits: torch.Tensor = self.lm_head(states, batch, self.norm, self.ops, collectives)
        return logits
