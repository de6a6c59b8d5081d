"""Mixture of experts with one shared expert, split by inner width (reference: ``Qwen3_5MoeSparseMoeBlock``)."""

import torch
import torch.nn.functional as F
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.config import ModelConfig
from splitrank.models.layers.attention import Weight
from splitrank.models.layers.norm import empty_parameter
from splitrank.models.ops.moe import route, routed_experts
from splitrank.models.sharding import TensorShard


class Experts(nn.Module):
    """Routed experts: ``gate_up_proj`` [E, 2 local_inner, H] (gate rows first), ``down_proj`` [E, H, local_inner]."""

    def __init__(self, num_experts: int, hidden_size: int, local_inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = empty_parameter(num_experts, 2 * local_inner, hidden_size, dtype=dtype)
        self.down_proj = empty_parameter(num_experts, hidden_size, local_inner, dtype=dtype)


class SharedExpert(nn.Module):
    """A SwiGLU MLP that every token takes."""

    def __init__(self, hidden_size: int, local_inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up_proj = Weight(2 * local_inner, hidden_size, dtype)
        self.down_proj = Weight(hidden_size, local_inner, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, self.gate_up_proj.weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight)


class SparseMoe(nn.Module):
    """Every rank routes all tokens; the experts' partial sums meet in one all-reduce."""

    def __init__(self, config: ModelConfig, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.top_k = config.num_experts_per_tok
        # Rows 0..E-1 are the router, row E is the gate of the shared expert.
        self.router = Weight(config.num_experts + 1, hidden, dtype)
        self.shared_expert = SharedExpert(hidden, config.shared_expert_intermediate_size // shard.size, dtype)
        self.experts = Experts(config.num_experts, hidden, config.moe_intermediate_size // shard.size, dtype)

    def forward(self, x: torch.Tensor, collectives: Collectives) -> torch.Tensor:
        """x [T, hidden_size] -> [T, hidden_size], summed over the tensor ranks."""
        logits = F.linear(x, self.router.weight)
        experts, weights = route(logits[:, :-1], self.top_k, x.dtype)
        routed = routed_experts(x, experts, weights, self.experts.gate_up_proj, self.experts.down_proj)
        shared = torch.sigmoid(logits[:, -1:]) * self.shared_expert(x)
        return collectives.all_reduce_(routed + shared)
