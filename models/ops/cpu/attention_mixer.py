"""Full attention between its two projections: q/k norm, rotary, page write, attention, output gate."""

import torch

from splitrank.models.batch import Batch
from splitrank.models.cache import KVPages
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.rotary import CosSin
from splitrank.models.ops.cpu.norm import rms_norm
from splitrank.models.ops.cpu.paged_attention import decode_attention, prefill_attention, write_pages
from splitrank.models.ops.cpu.rotary import rotate


def mix_attention(
    projected: torch.Tensor, layer: Attention, batch: Batch, pages: KVPages, cos_sin: CosSin
) -> torch.Tensor:
    """projected [T, sum(qkv_widths)] -> [T, heads * head_dim]."""
    shapes, dim = layer.shapes, layer.shapes.config.head_dim
    q_gate, k, v = torch.split(projected, list(shapes.qkv_widths), dim=-1)
    q, gate = q_gate.view(-1, shapes.num_heads, 2 * dim).chunk(2, dim=-1)
    q = rotate(rms_norm(q, layer.q_norm.scale, layer.q_norm.eps), *cos_sin)
    k = k.view(-1, shapes.num_kv_heads, dim)
    k = rotate(rms_norm(k, layer.k_norm.scale, layer.k_norm.eps), *cos_sin)
    write_pages(pages, batch.kv_index, k, v.view(-1, shapes.num_kv_heads, dim))
    return (_attend(q, batch, pages) * torch.sigmoid(gate)).flatten(1)


def _attend(q: torch.Tensor, batch: Batch, pages: KVPages) -> torch.Tensor:
    outputs = [prefill_attention(q[chunk.rows], pages, chunk.start, table) for chunk, table in batch.prefills]
    if batch.num_decodes:
        outputs.insert(0, decode_attention(q[: batch.num_decodes], pages, batch.decode_pages, batch.decode_lengths))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
