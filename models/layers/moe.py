"""Mixture of experts with one shared expert, split by inner width (reference: ``Qwen3_5MoeSparseMoeBlock``)."""

import torch
from torch import nn

from splitrank.models.layer_shapes import LayerShapes, length
from splitrank.models.layers.linear import RowParallel
from splitrank.models.layers.parameter import parameter
from splitrank.models.ops.operations import Operations


class PlainWeight(nn.Module):
    """A ``weight`` that the layer around it stores together with others."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.weight = parameter(ops, rows, columns, dtype=dtype)


class SharedExpert(nn.Module):
    """A SwiGLU MLP: ``gate_up_proj`` [2I, H] (gate rows first) and ``down_proj`` [H, I]."""

    def __init__(self, hidden_size: int, inner: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.gate_up_proj = PlainWeight(2 * inner, hidden_size, dtype, ops)
        self.down_proj = RowParallel("shared_down", hidden_size, inner, dtype, ops)


class RoutedExperts(nn.Module):
    """All experts, stacked as checkpoints have them: ``gate_up_proj`` [E, 2I, H] (gate rows first), ``down_proj``
    [E, H, I]. After ``prepare`` only ``stored`` holds the values."""

    def __init__(self, num_experts: int, hidden_size: int, inner: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.gate_up_proj = parameter(ops, num_experts, 2 * inner, hidden_size, dtype=dtype)
        self.down_proj = parameter(ops, num_experts, hidden_size, inner, dtype=dtype)

    def prepare(self, ops: Operations) -> None:
        """After loading: stores the weights and frees the plain parameters."""
        self.stored = ops.store_experts(self.gate_up_proj.data, self.down_proj.data)
        del self.gate_up_proj, self.down_proj


class SparseMoe(nn.Module):
    """Every rank routes all tokens; the layer's all-reduce adds the ranks' partial sums."""

    def __init__(self, shapes: LayerShapes, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        config = shapes.config
        hidden = config.hidden_size
        self.top_k = config.num_experts_per_tok
        # Rows 0..E-1 are the router, row E is the gate of the shared expert.
        self.router = PlainWeight(config.num_experts + 1, hidden, dtype, ops)
        self.shared_expert = SharedExpert(hidden, length(shapes.shared_inner), dtype, ops)
        self.experts = RoutedExperts(config.num_experts, hidden, length(shapes.expert_inner), dtype, ops)

    def prepare(self, ops: Operations) -> None:
        """After loading: both products of the normed tokens that every token needs are stored together."""
        self.stored_router = ops.store_router(self.router.weight.data, self.shared_expert.gate_up_proj.weight.data)
        del self.router, self.shared_expert.gate_up_proj
