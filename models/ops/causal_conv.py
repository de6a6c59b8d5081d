"""Depthwise causal convolution with silu, over a chunk or one token, with the last inputs kept as state.

Four shifted multiply-adds instead of ``conv1d``: torch spends 158 us on a 4-tap depthwise convolution of one token.
Sums are float32, the result has the input's dtype. Legend: T tokens, D decode rows, C channels, K taps.
"""

import torch
import torch.nn.functional as F


def conv_prefill(x: torch.Tensor, state: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, C], state [C, K - 1] (updated in place), weight [C, K] -> [T, C]."""
    taps = weight.shape[1]
    padded = torch.cat((state.t(), x))  # [K - 1 + T, C]
    state.copy_(padded[-(taps - 1) :].t())
    padded, columns = padded.float(), weight.float().t()
    out = padded[: x.shape[0]] * columns[0]
    for tap in range(1, taps):
        out.addcmul_(padded[tap : tap + x.shape[0]], columns[tap])
    return F.silu(out.to(x.dtype))


def conv_decode(x: torch.Tensor, states: torch.Tensor, slots: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [D, C], states [slots, C, K - 1] (rows ``slots`` updated), weight [C, K] -> [D, C]."""
    window = torch.cat((states.index_select(0, slots), x.unsqueeze(-1)), dim=-1)  # [D, C, K]
    states.index_copy_(0, slots, window[..., 1:])
    return F.silu((window.float() * weight.float()).sum(-1).to(x.dtype))
