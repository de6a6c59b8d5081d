"""Random tensors, poisoned outputs, and how near a kernel must come to the float64 specification."""

import torch

from splitrank.models.ops.gpu.launch import INTERPRETED

# Relative (Euclidean) error: float32 sums of some hundred terms; bf16 rounds intermediate values and results by up to
# 2^-9 each. The interpreter cuts bf16 off instead of rounding it: 2^-7.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2 if INTERPRETED else 5e-3}


def normal(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device=device) * scale).to(dtype)


def nan(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """An output that nobody has written."""
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double().to(found.device)
    return float((found.double() - expected).norm() / expected.norm())


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
    """NaN is never near."""
    error, limit = relative_error(found, expected), TOLERANCE[found.dtype] if tolerance is None else tolerance
    assert error <= limit, f"relative error {error:.2e}, limit {limit:.0e}"
