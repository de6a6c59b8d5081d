"""Rotary embedding on the first ``rotary_dim`` dims of a head, in the half-split ("rotate_half") layout.

Qwen3.5 uses interleaved mrope: three position axes (time, height, width) share the frequencies. Text gives all three
axes the same position, so the interleaving picks equal values and plain rope is exact
(reference: ``Qwen3_5MoeTextRotaryEmbedding``).
"""

import torch

CosSin = tuple[torch.Tensor, torch.Tensor]


class RotaryEmbedding:
    """Cosines and sines of a step's positions; no parameters."""

    def __init__(self, rotary_dim: int, theta: float, device: torch.device) -> None:
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        self._inverse_frequencies = (1.0 / theta**exponents).to(device)

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> CosSin:
        """positions [T] -> cos, sin [T, 1, rotary_dim] in ``dtype`` (the angles are float32)."""
        angles = positions.float()[:, None] * self._inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)
