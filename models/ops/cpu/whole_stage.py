"""All layers of a stage in one compiled call, where no tensor rank has to be heard between them.

The same operations in the same order as ``Stage.run_layers``, so the same bits: what is saved is Python between them, a
twentieth of a decode step of one request.
"""

import torch
from torch import nn

from splitrank import _cpu_ops as cpu_ops
from splitrank.comm.collectives import Collectives
from splitrank.models.batch import Batch
from splitrank.models.cache import KVPages, LayerCache, StageCache
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layers.decoder_layer import DecoderLayer
from splitrank.models.ops.cpu import spans
from splitrank.models.ops.cpu.descriptions import (
    describe_attention,
    describe_delta,
    describe_experts,
    describe_norm,
)
from splitrank.models.ops.cpu.exact import ExactOperations
from splitrank.models.ops.cpu.native import values
from splitrank.models.qwen3_5 import Stage


class WholeStage:
    """The layers of a stage with one tensor rank, whose weights are stored and whose caches are allocated."""

    def __init__(self, model: Stage, cache: StageCache) -> None:
        assert isinstance(model.ops, ExactOperations)
        assert model.ops.shard.size == 1, model.ops.shard
        self._model, self._cache, self._ops = model, cache, model.ops
        rotary_dim = model.config.rotary_dim
        self._layers = [_describe(model.layers[layer], cache.layers[layer], rotary_dim) for layer in model.stage.layers]

    def run_layers(self, batch: Batch, states: HiddenStates | None, collectives: Collectives) -> HiddenStates:
        """``Stage.run_layers``, which a step takes whose chunks copy states between the layers' operations."""
        model = self._model
        if any(chunk.copies for chunk in batch.prefills.chunks):
            return model.run_layers(batch, states, self._cache, collectives)
        if model.stage.is_first:
            hidden = model.embed_tokens(batch, self._ops, collectives)
            residual = torch.zeros_like(hidden)
        else:
            assert states is not None
            hidden, residual = (part.clone() for part in states)  # overwritten below, and received memory may not be
        rows, width = hidden.shape
        positions = self._ops.positions(batch, model.rotary)
        self._ops.native.layers(
            self._layers,
            values(hidden),
            values(residual),
            rows,
            width,
            spans.with_slots_and_pages(batch),
            batch.kv_index.data_ptr(),
            positions.data_ptr(),
        )
        return HiddenStates(hidden, residual)


def _describe(layer: nn.Module, cache: LayerCache, rotary_dim: int) -> cpu_ops.Layer:
    assert isinstance(layer, DecoderLayer)
    mixer: cpu_ops.DeltaLayer | cpu_ops.AttentionLayer
    if isinstance(cache, KVPages):
        mixer = describe_attention(layer.self_attn, cache, rotary_dim)
        first, last = layer.self_attn.qkv_proj, layer.self_attn.o_proj
    else:
        mixer = describe_delta(layer.linear_attn, cache)
        first, last = layer.linear_attn.in_proj, layer.linear_attn.out_proj
    return cpu_ops.Layer(
        describe_norm(layer.input_layernorm),
        first.stored.native,
        mixer,
        last.stored.native,
        describe_norm(layer.post_attention_layernorm),
        describe_experts(layer.mlp),
    )
