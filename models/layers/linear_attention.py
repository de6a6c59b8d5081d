"""Gated DeltaNet, split by heads (reference: ``Qwen3_5MoeGatedDeltaNet``; Yang et al. 2024, arXiv 2412.06464)."""

import torch
from torch import nn

from splitrank.models.cache import RecurrentSlots
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.linear import Linear, RowParallel
from splitrank.models.layers.norm import GatedRMSNorm, RMSNorm
from splitrank.models.layers.parameter import parameter
from splitrank.models.ops.operations import DeviceBatch, Operations


class Taps(nn.Module):
    """The depthwise convolution's weight [C, K]; each step uses it as float32 ``taps`` [K, C]."""

    def __init__(self, channels: int, num_taps: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.weight = parameter(ops, channels, num_taps, dtype=dtype)

    def prepare(self, ops: Operations) -> None:
        """After loading: transposes, so that each tap is a row."""
        self.taps = self.weight.float().t().contiguous()


class LinearAttention(nn.Module):
    """One fused input projection (q, k, v, z, b, a), depthwise convolution, gated delta rule, gated norm, output."""

    def __init__(self, shapes: LayerShapes, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        config = shapes.config
        self.shapes = shapes
        self.in_proj = Linear("in_proj", sum(shapes.delta_widths), config.hidden_size, dtype, ops)
        self.conv1d = Taps(shapes.conv_dim, config.linear_conv_kernel_dim, dtype, ops)
        self.A_log = parameter(ops, shapes.num_value_heads, dtype=torch.float32)
        self.dt_bias = parameter(ops, shapes.num_value_heads, dtype=torch.float32)
        self.norm = GatedRMSNorm(config.linear_value_head_dim, config.rms_norm_eps, ops)
        self.out_proj = RowParallel("out_proj", config.hidden_size, shapes.value_dim, dtype, ops)

    def prepare(self, ops: Operations) -> None:
        """After loading: computes the constant that each step uses."""
        self.decay_rate = -self.A_log.exp()

    def forward(
        self, states: HiddenStates, norm: RMSNorm, batch: DeviceBatch, slots: RecurrentSlots, ops: Operations
    ) -> HiddenStates:
        """``hidden``: this rank's partial sum of the output projection; and the new residual."""
        projected, residual = ops.add_norm_project(states, norm, self.in_proj, batch)
        mixed, gate = ops.mix_delta(projected, self, batch, slots)
        return HiddenStates(ops.norm_gate_project(mixed, gate, self.norm, self.out_proj, batch), residual)
