"""The two mixers between their projections: decode rows by the one-step kernels, prompt rows by the chunked ones."""

from dataclasses import dataclass

import torch

from splitrank.models.cache import KVPages, RecurrentSlots
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.ops.gpu.attention_chunk import attention_chunk, prepare_attention
from splitrank.models.ops.gpu.attention_decode import SplitMemory, attention_decode
from splitrank.models.ops.gpu.batch import GpuBatch, Round
from splitrank.models.ops.gpu.conv_chunk import conv_chunk
from splitrank.models.ops.gpu.delta_chunk import delta_chunk, solve_blocks
from splitrank.models.ops.gpu.delta_step import delta_step
from splitrank.models.ops.gpu.tiles import TileTable


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of a step's positions, as each of the attention kernels wants them."""

    decode: torch.Tensor  # [D, r] cosines, then sines, in the model's dtype
    cos: torch.Tensor  # [T - D, r / 2] float32
    sin: torch.Tensor


def mix_delta(
    projected: torch.Tensor, layer: LinearAttention, batch: GpuBatch, slots: RecurrentSlots, tiles: TileTable
) -> tuple[torch.Tensor, torch.Tensor]:
    """projected [T, sum(delta_widths)] -> mixed [T, value heads, dim], and the gate's columns [T, heads * dim]."""
    shapes, decodes = layer.shapes, batch.num_decodes
    mixed = projected.new_empty(projected.shape[0], shapes.num_value_heads, shapes.config.linear_value_head_dim)
    if decodes:
        constants = layer.conv1d.taps, layer.decay_rate, layer.dt_bias
        where = _pending(slots), batch.decode_slots, batch.decode_positions
        of_rows = tiles.tile("delta_step", decodes), tiles.tile("delta_inputs", decodes)
        delta_step(projected[:decodes], slots.conv, *constants, slots.delta, *where, mixed[:decodes], *of_rows)
    for one in batch.rounds:
        rows = slice(decodes + one.rows.start, decodes + one.rows.stop)
        _delta_of_round(projected[rows], layer, one, slots, tiles, mixed[rows])
    return mixed, projected[:, shapes.conv_dim : shapes.conv_dim + shapes.value_dim]


def _delta_of_round(
    projected: torch.Tensor,
    layer: LinearAttention,
    one: Round,
    slots: RecurrentSlots,
    tiles: TileTable,
    out: torch.Tensor,
) -> None:
    rows, sequences = projected.shape[0], one.sequences
    constants = layer.conv1d.taps, layer.decay_rate, layer.dt_bias
    tile = tiles.tile("conv_chunk", rows)
    q, k, v, log_decay, beta = conv_chunk(
        projected, *constants, slots.conv, sequences, layer.shapes.num_key_heads, tile
    )
    solved = solve_blocks(q, k, log_decay, beta, sequences, tiles.tile("solve_blocks", rows))
    delta_chunk(q, k, v, solved, slots.delta, _pending(slots), sequences, tiles.tile("delta_chunk", rows), out)
    for slot, copy in one.copies:
        copy.tensors.extend(slots.copy_of(slot))


def _pending(slots: RecurrentSlots) -> torch.Tensor:
    assert slots.pending is not None, "made for a GPU"
    return slots.pending


def mix_attention(
    projected: torch.Tensor,
    layer: Attention,
    batch: GpuBatch,
    pages: KVPages,
    angles: Angles,
    memory: SplitMemory,
    tiles: TileTable,
) -> torch.Tensor:
    """projected [T, sum(qkv_widths)] -> [T, heads * head_dim]; queries of prompt rows are changed where they lie."""
    shapes, decodes, norms = layer.shapes, batch.num_decodes, (layer.q_norm.weight.data, layer.k_norm.weight.data)
    eps, rows = layer.q_norm.eps, projected.shape[0] - decodes
    outputs = []
    if decodes:
        out = projected.new_empty(decodes, shapes.num_heads, shapes.config.head_dim)
        shared = SplitMemory(memory.partials[:decodes], memory.counters[:decodes])
        attention_decode(
            projected[:decodes], *norms, angles.decode, pages.keys, pages.values, batch.decode_pages,
            batch.decode_positions, shared, out, eps, tiles.tile("attention_decode", decodes),
        )  # fmt: skip
        outputs.append(out.flatten(1))
    if batch.segments is not None:
        chunk, tile = projected[decodes:], tiles.tile("prepare_attention", rows)
        turned = angles.cos, angles.sin
        prepare_attention(chunk, *norms, eps, *turned, pages.keys, pages.values, batch.segments, tile)
        tile = tiles.tile("attention_chunk", rows)
        outputs.append(attention_chunk(chunk, pages.keys, pages.values, batch.segments, tile))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
