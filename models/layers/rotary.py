"""Rotary embedding on the first ``rotary_dim`` dims of a head, in the half-split ("rotate_half") layout.

Qwen3.5 uses interleaved mrope: three position axes (time, height, width) share the frequencies. Text gives all three
axes the same position, so the interleaving picks equal values and plain rope is exact
(reference: ``Qwen3_5MoeTextRotaryEmbedding``).
"""

import torch


class RotaryEmbedding:
    """Cosines and sines of a step's positions; no parameters."""

    def __init__(self, rotary_dim: int, theta: float) -> None:
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        self._inverse_frequencies = 1.0 / theta**exponents

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] -> cos, sin [T, 1, rotary_dim] in ``dtype`` (the angles are float32)."""
        angles = positions.float()[:, None] * self._inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, head_dim]: rotates the first ``cos.shape[-1]`` dims, passes the rest."""
    rotary_dim = cos.shape[-1]
    turned, passed = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, passed), dim=-1)
