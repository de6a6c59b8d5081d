"""RMS norms of Qwen3.5: the zero-centred one of the residual stream, and the gated one of DeltaNet."""

import torch
import torch.nn.functional as F
from torch import nn


def empty_parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter of uninitialised storage, to be filled by the loader."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in float32 (reference: ``Qwen3_5MoeRMSNorm``)."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dim, self.eps = (dim,), eps
        self.weight = empty_parameter(dim, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.dim, self.weight.float() + 1.0, self.eps).to(x.dtype)


class GatedRMSNorm(nn.Module):
    """x / rms(x) * weight * silu(gate) over the last dim (reference: ``Qwen3_5MoeRMSNormGated``)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = (dim,), eps
        self.weight = empty_parameter(dim, dtype=torch.float32)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        normed = F.rms_norm(x.float(), self.dim, self.weight, self.eps)
        return (normed * F.silu(gate.float())).to(gate.dtype)
