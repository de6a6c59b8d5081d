"""Gated DeltaNet between its two projections: convolution, gates, delta rule, row by row of the batch."""

import torch
import torch.nn.functional as F

from splitrank.models.batch import Batch, Chunk
from splitrank.models.cache import RecurrentSlots
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.ops.cpu.causal_conv import conv_decode, conv_prefill
from splitrank.models.ops.cpu.delta_rule import chunked_delta_rule, delta_rule_step


def mix_delta(
    projected: torch.Tensor, layer: LinearAttention, batch: Batch, slots: RecurrentSlots
) -> tuple[torch.Tensor, torch.Tensor]:
    """projected [T, sum(delta_widths)] -> (mixed, gate z), each [T, value heads, value head dim]."""
    qkv, z, b, a = torch.split(projected, list(layer.shapes.delta_widths), dim=-1)
    beta = torch.sigmoid(b)
    log_decay = layer.decay_rate * F.softplus(a.float() + layer.dt_bias)
    outputs = [_prefill(qkv, log_decay, beta, chunk, layer, slots) for chunk in batch.prefills.chunks]
    if batch.num_decodes:
        outputs.insert(0, _decode(qkv, log_decay, beta, batch, layer, slots))
    mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return mixed, z.reshape(mixed.shape)


def _decode(
    qkv: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    batch: Batch,
    layer: LinearAttention,
    slots: RecurrentSlots,
) -> torch.Tensor:
    rows = slice(0, batch.num_decodes)
    mixed = conv_decode(qkv[rows], slots.conv, batch.decode_slots, layer.conv1d.taps)
    q, k, v = _heads(mixed, layer.shapes)
    return delta_rule_step(q, k, v, log_decay[rows], beta[rows], slots.delta, batch.decode_slots)


def _prefill(
    qkv: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    chunk: Chunk,
    layer: LinearAttention,
    slots: RecurrentSlots,
) -> torch.Tensor:
    conv, delta = slots.conv[chunk.slot], slots.delta[chunk.slot]
    if chunk.start == 0:  # a new sequence in a used slot
        conv.zero_()
        delta.zero_()
    outputs, begin = [], chunk.row
    for copy in (*chunk.copies, None):
        rows = slice(begin, chunk.row + copy.offset if copy else chunk.rows.stop)
        q, k, v = _heads(conv_prefill(qkv[rows], conv, layer.conv1d.taps), layer.shapes)
        outputs.append(chunked_delta_rule(q, k, v, log_decay[rows], beta[rows], delta))
        if copy:
            copy.tensors.extend(slots.copy_of(chunk.slot))
        begin = rows.stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _heads(mixed: torch.Tensor, shapes: LayerShapes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[T, conv_dim] -> q, k [T, key heads, dim], v [T, value heads, dim]."""
    q, k, v = torch.split(mixed, [shapes.key_dim, shapes.key_dim, shapes.value_dim], dim=-1)
    key_shape = (-1, shapes.num_key_heads, shapes.config.linear_key_head_dim)
    value_shape = (-1, shapes.num_value_heads, shapes.config.linear_value_head_dim)
    return q.view(key_shape), k.view(key_shape), v.view(value_shape)
