"""Gated full attention over paged keys and values, split by heads (reference: ``Qwen3_5MoeAttention``)."""

import torch
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.batch import Batch
from splitrank.models.config import ModelConfig
from splitrank.models.layers.linear import Linear
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.layers.rotary import rotate
from splitrank.models.ops.paged_attention import decode_attention, prefill_attention, write_pages
from splitrank.models.sharding import TensorShard
from splitrank.models.state import KVPages

CosSin = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Query and gate interleaved per head, q/k norm per head, partial rotary, output times sigmoid(gate)."""

    def __init__(self, config: ModelConfig, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        kv_start, kv_stop = shard.groups(config.num_key_value_heads)
        self.head_dim = config.head_dim
        self.local_num_heads = config.num_attention_heads // shard.size
        self.local_num_kv_heads = kv_stop - kv_start
        rows = (2 * self.local_num_heads + 2 * self.local_num_kv_heads) * self.head_dim
        self.qkv_proj = Linear(rows, config.hidden_size, dtype)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps, dtype)
        self.o_proj = Linear(config.hidden_size, self.local_num_heads * self.head_dim, dtype)

    def forward(
        self, hidden: torch.Tensor, batch: Batch, state: KVPages, cos_sin: CosSin, collectives: Collectives
    ) -> torch.Tensor:
        """hidden [T, hidden_size] -> [T, hidden_size], summed over the tensor ranks."""
        heads, kv_heads, dim = self.local_num_heads, self.local_num_kv_heads, self.head_dim
        projected = self.qkv_proj(hidden)
        q_gate, k, v = torch.split(projected, [2 * heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q, gate = q_gate.view(-1, heads, 2 * dim).chunk(2, dim=-1)
        q = rotate(self.q_norm(q), *cos_sin)
        k = rotate(self.k_norm(k.view(-1, kv_heads, dim)), *cos_sin)
        write_pages(state, batch.kv_index, k, v.view(-1, kv_heads, dim))
        mixed = self._attend(q, batch, state) * torch.sigmoid(gate)
        return collectives.all_reduce_(self.o_proj(mixed.flatten(1)))

    def _attend(self, q: torch.Tensor, batch: Batch, state: KVPages) -> torch.Tensor:
        outputs = [prefill_attention(q[chunk.rows], state, chunk) for chunk in batch.prefills]
        if batch.num_decodes:
            decoded = decode_attention(q[: batch.num_decodes], state, batch.decode_pages, batch.decode_lengths)
            outputs.insert(0, decoded)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
