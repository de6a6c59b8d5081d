"""Depthwise causal convolution with silu, over a chunk or one token, with the last inputs kept as state.

Shifted multiply-adds instead of ``conv1d``: torch spends 158 us on a 4-tap depthwise convolution of one token.
Sums are float32, the result has the input's dtype. Legend: T tokens, D decode rows, C channels, K taps.
"""

import torch
import torch.nn.functional as F


def conv_prefill(x: torch.Tensor, state: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """x [T, C], state [K - 1, C] (updated in place), taps [K, C] in float32, oldest first -> [T, C]."""
    padded = torch.cat((state, x))  # [K - 1 + T, C]
    state.copy_(padded[x.shape[0] :])
    padded = padded.float()
    out = padded[: x.shape[0]] * taps[0]
    for tap in range(1, taps.shape[0]):
        out.addcmul_(padded[tap : tap + x.shape[0]], taps[tap])
    return F.silu(out.to(x.dtype))


def conv_decode(x: torch.Tensor, states: torch.Tensor, slots: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """x [D, C], states [slots, K - 1, C] (rows ``slots`` updated), taps [K, C] in float32 -> [D, C]."""
    window = torch.cat((states[slots], x.unsqueeze(1)), dim=1)  # [D, K, C]
    states[slots] = window[:, 1:]
    return F.silu((window.float() * taps).sum(1).to(x.dtype))
