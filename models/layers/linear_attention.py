"""Gated DeltaNet, split by heads (Yang et al., "Gated Delta Networks", 2024; ``Qwen3_5MoeGatedDeltaNet``)."""

import torch
import torch.nn.functional as F
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.batch import Batch, PrefillChunk
from splitrank.models.config import ModelConfig
from splitrank.models.layers.linear import Linear
from splitrank.models.layers.norm import GatedRMSNorm, empty_parameter
from splitrank.models.ops.causal_conv import conv_decode, conv_prefill
from splitrank.models.ops.delta_rule import chunked_delta_rule, delta_rule_step
from splitrank.models.sharding import TensorShard
from splitrank.models.state import RecurrentSlots


class Taps(nn.Module):
    """The depthwise convolution's weight [C, K]; each step uses it as float32 ``taps`` [K, C]."""

    def __init__(self, channels: int, num_taps: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty_parameter(channels, num_taps, dtype=dtype)

    def prepare(self) -> None:
        self.taps = self.weight.float().t().contiguous()


class LinearAttention(nn.Module):
    """One fused input projection (q, k, v, z, b, a), depthwise convolution, gated delta rule, gated norm, output."""

    def __init__(self, config: ModelConfig, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        k_start, k_stop = shard.groups(config.linear_num_key_heads)
        self.key_head_dim, self.value_head_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.local_num_key_heads = k_stop - k_start
        self.local_num_value_heads = config.linear_num_value_heads // shard.size
        self.local_key_dim = self.local_num_key_heads * self.key_head_dim
        self.local_value_dim = self.local_num_value_heads * self.value_head_dim
        conv_dim = 2 * self.local_key_dim + self.local_value_dim
        heads = self.local_num_value_heads
        self.split_sizes = [conv_dim, self.local_value_dim, heads, heads]
        self.in_proj = Linear(sum(self.split_sizes), config.hidden_size, dtype)
        self.conv1d = Taps(conv_dim, config.linear_conv_kernel_dim, dtype)
        self.A_log = empty_parameter(heads, dtype=torch.float32)
        self.dt_bias = empty_parameter(heads, dtype=torch.float32)
        self.norm = GatedRMSNorm(self.value_head_dim, config.rms_norm_eps)
        self.out_proj = Linear(config.hidden_size, self.local_value_dim, dtype)

    def prepare(self) -> None:
        """After loading: the constant of each step."""
        self.decay_rate = -self.A_log.exp()

    def forward(
        self, hidden: torch.Tensor, batch: Batch, state: RecurrentSlots, collectives: Collectives
    ) -> torch.Tensor:
        """hidden [T, hidden_size] -> [T, hidden_size], summed over the tensor ranks."""
        qkv, z, b, a = torch.split(self.in_proj(hidden), self.split_sizes, dim=-1)
        beta = torch.sigmoid(b)
        log_decay = self.decay_rate * F.softplus(a.float() + self.dt_bias)
        outputs = [self._prefill(qkv, log_decay, beta, chunk, state) for chunk in batch.prefills]
        if batch.num_decodes:
            outputs.insert(0, self._decode(qkv, log_decay, beta, batch, state))
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        gated = self.norm(mixed, z.reshape(mixed.shape))
        return collectives.all_reduce_(self.out_proj(gated.flatten(1)))

    def _decode(
        self, qkv: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor, batch: Batch, state: RecurrentSlots
    ) -> torch.Tensor:
        rows = slice(0, batch.num_decodes)
        mixed = conv_decode(qkv[rows], state.conv, batch.decode_slots, self.conv1d.taps)
        q, k, v = self._heads(mixed)
        return delta_rule_step(q, k, v, log_decay[rows], beta[rows], state.delta, batch.decode_slots)

    def _prefill(
        self, qkv: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor, chunk: PrefillChunk, state: RecurrentSlots
    ) -> torch.Tensor:
        conv, delta = state.conv[chunk.slot], state.delta[chunk.slot]
        if chunk.start == 0:  # a new sequence in a used slot
            conv.zero_()
            delta.zero_()
        outputs, begin = [], chunk.row
        for copy in (*chunk.copies, None):
            rows = slice(begin, chunk.row + copy.offset if copy else chunk.rows.stop)
            q, k, v = self._heads(conv_prefill(qkv[rows], conv, self.conv1d.taps))
            outputs.append(chunked_delta_rule(q, k, v, log_decay[rows], beta[rows], delta))
            if copy:
                copy.tensors.extend((conv.clone(), delta.clone()))
            begin = rows.stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _heads(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = torch.split(mixed, [self.local_key_dim, self.local_key_dim, self.local_value_dim], dim=-1)
        key_shape = (-1, self.local_num_key_heads, self.key_head_dim)
        return q.view(key_shape), k.view(key_shape), v.view(-1, self.local_num_value_heads, self.value_head_dim)
