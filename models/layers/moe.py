"""Mixture of experts with one shared expert, split by inner width (reference: ``Qwen3_5MoeSparseMoeBlock``)."""

import torch
import torch.nn.functional as F
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.config import ModelConfig
from splitrank.models.layers.linear import Linear
from splitrank.models.ops.linear import linear
from splitrank.models.ops.moe import route, routed_experts
from splitrank.models.sharding import TensorShard


class Expert(nn.Module):
    """A SwiGLU MLP: ``gate_up_proj`` [2 local_inner, H] (gate rows first) and ``down_proj`` [H, local_inner]."""

    def __init__(self, hidden_size: int, local_inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = Linear(2 * local_inner, hidden_size, dtype)
        self.down_proj = Linear(hidden_size, local_inner, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H] -> [T, H], this rank's share."""
        gate, up = linear(x, self.gate_up_proj.packed).chunk(2, dim=-1)
        return linear(F.silu(gate).mul_(up), self.down_proj.packed)


class SparseMoe(nn.Module):
    """Every rank routes all tokens; the experts' partial sums meet in one all-reduce."""

    def __init__(self, config: ModelConfig, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.top_k = config.num_experts_per_tok
        # Rows 0..E-1 are the router, row E is the gate of the shared expert.
        self.router = Linear(config.num_experts + 1, hidden, dtype)
        self.shared_expert = Expert(hidden, config.shared_expert_intermediate_size // shard.size, dtype)
        inner = config.moe_intermediate_size // shard.size
        self.experts = nn.ModuleList(Expert(hidden, inner, dtype) for _ in range(config.num_experts))
        # Bound methods in a plain list: a step calls hundreds of experts, and a module's call costs 5 us each.
        self._experts = [expert.forward for expert in self.experts]

    def forward(self, x: torch.Tensor, collectives: Collectives) -> torch.Tensor:
        """x [T, hidden_size] -> [T, hidden_size], summed over the tensor ranks."""
        logits = self.router(x)
        experts, weights = route(logits[:, :-1], self.top_k, x.dtype)
        routed = routed_experts(x, experts, weights, self._experts)
        shared = torch.sigmoid(logits[:, -1:]) * self.shared_expert(x)
        return collectives.all_reduce_(routed + shared)
