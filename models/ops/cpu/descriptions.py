"""Layers and their caches as the compiled operations take them: made once, since neither moves after loading."""

from splitrank import _cpu_ops as cpu_ops
from splitrank.models.cache import KVPages, RecurrentSlots
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.ops.cpu.native import DTYPE_CODES, StoredExperts, StoredRouter, Weight, values


def describe_norm(norm: RMSNorm) -> cpu_ops.Norm:
    return cpu_ops.Norm(norm.scale.data_ptr(), norm.eps)


def describe_delta(layer: LinearAttention, slots: RecurrentSlots) -> cpu_ops.DeltaLayer:
    shapes, config = layer.shapes, layer.shapes.config
    return cpu_ops.DeltaLayer(
        shapes.num_key_heads,
        shapes.num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        config.linear_conv_kernel_dim,
        layer.conv1d.taps.data_ptr(),
        layer.decay_rate.data_ptr(),
        layer.dt_bias.data_ptr(),
        cpu_ops.Norm(layer.norm.weight.data_ptr(), layer.norm.eps),
        values(slots.conv),
        slots.delta.data_ptr(),
    )


def describe_attention(layer: Attention, pages: KVPages, rotary_dim: int) -> cpu_ops.AttentionLayer:
    shapes = layer.shapes
    return cpu_ops.AttentionLayer(
        shapes.num_heads,
        shapes.num_kv_heads,
        shapes.config.head_dim,
        rotary_dim,
        describe_norm(layer.q_norm),
        describe_norm(layer.k_norm),
        pages.keys.data_ptr(),
        pages.values.data_ptr(),
        DTYPE_CODES[pages.keys.dtype],
        pages.keys.shape[1],
    )


def describe_experts(layer: SparseMoe) -> cpu_ops.ExpertsLayer:
    router: StoredRouter = layer.stored_router
    stored: StoredExperts = layer.experts.stored
    shared_down: Weight = layer.shared_expert.down_proj.stored
    return cpu_ops.ExpertsLayer(
        stored.down.num_experts,
        layer.top_k,
        stored.down.num_inputs,
        router.shared_gate_up.first.num_outputs // 2,
        router.router.native,
        router.shared_gate_up.first.native,
        shared_down.native,
        stored.gate_up.first.native,
        stored.down.first.native,
        stored.gate_up.expert_bytes,
        stored.down.expert_bytes,
    )
