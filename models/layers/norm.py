"""RMS norms of Qwen3.5: the zero-centred one of the residual stream, and the gated one of DeltaNet."""

import torch
from torch import nn

from splitrank.models.layers.parameter import parameter
from splitrank.models.ops.operations import Operations


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in float32 (reference: ``Qwen3_5MoeRMSNorm``)."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(ops, dim, dtype=dtype)

    def prepare(self, ops: Operations) -> None:
        """After loading: the scale in the form that each step needs."""
        self.scale = 1.0 + self.weight.float()


class GatedRMSNorm(nn.Module):
    """x / rms(x) * weight * silu(gate) over the last dim (reference: ``Qwen3_5MoeRMSNormGated``)."""

    def __init__(self, dim: int, eps: float, ops: Operations) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(ops, dim, dtype=torch.float32)
