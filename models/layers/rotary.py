"""Rotary embedding on the first ``rotary_dim`` dims of a head, in the half-split ("rotate_half") layout.

Qwen3.5 uses interleaved mrope: the frequencies are split over three position axes (time, height, width). Text has the
same position on all three axes, so plain rope is exact
(reference: ``Qwen3_5MoeTextRotaryEmbedding``).
"""

import math

import torch

from splitrank.models.config import Yarn

CosSin = tuple[torch.Tensor, torch.Tensor]


class RotaryEmbedding:
    """Cosines and sines of a step's positions; no parameters."""

    def __init__(self, rotary_dim: int, theta: float, yarn: Yarn | None, device: torch.device) -> None:
        self.inverse_frequencies = inverse_frequencies(rotary_dim, theta, yarn).to(device)  # [rotary_dim / 2] float32
        self.scale = 1.0 if yarn is None else yarn.attention_factor

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> CosSin:
        """positions [T] -> cos, sin [T, 1, rotary_dim] in ``dtype`` (the angles are float32)."""
        angles = positions.float()[:, None] * self.inverse_frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def inverse_frequencies(rotary_dim: int, theta: float, yarn: Yarn | None) -> torch.Tensor:
    """Radians a position of each pair of dims, [rotary_dim / 2] (reference: ``transformers.modeling_rope_utils``)."""
    periods = theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    if yarn is None:
        return 1.0 / periods

    def dim_that_turns(times: float) -> float:
        """The pair of dims that turns so often over the original length; earlier pairs turn more often."""
        period = yarn.original_max_position_embeddings / (times * 2 * math.pi)
        return rotary_dim * math.log(period) / (2 * math.log(theta))

    low, high = dim_that_turns(yarn.beta_fast), dim_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    high += 0.001 * (low == high)  # no division by zero
    keeps = 1 - ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return 1.0 / (yarn.factor * periods) * (1 - keeps) + 1.0 / periods * keeps
