"""Routing and the routed experts with torch operations.

Legend: T tokens, E experts, k experts a token, H hidden size.
"""

from collections.abc import Callable
from typing import Protocol

import torch


def route(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] -> expert ids [T, k], weights [T, k] that sum to 1 (softmax in float32, then normalised)."""
    weights, experts = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), top_k, dim=-1)
    return experts, (weights / weights.sum(-1, keepdim=True)).to(dtype)


class Experts(Protocol):
    """E functions [n, H] -> [n, H], one an expert."""

    def __len__(self) -> int: ...

    def __getitem__(self, expert: int, /) -> Callable[[torch.Tensor], torch.Tensor]: ...


def routed_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: Experts,
) -> torch.Tensor:
    """x [T, H], chosen and weights [T, k] -> [T, H], this rank's share.

    Tokens are sorted by expert once, so that an expert costs its GEMMs and next to nothing else. The weighted sum over
    a token's experts is one float32 product.
    """
    num_tokens, top_k = chosen.shape
    if num_tokens == 1:
        out = torch.cat([experts[expert](x) for expert in chosen[0].tolist()])
        return _weighted(weights, out[None], x.dtype)
    flat = chosen.view(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    parts = torch.split(x[order // top_k], counts)
    out = torch.cat([experts[expert](part) for expert, part in enumerate(parts) if counts[expert]])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return _weighted(weights, out[back].view(num_tokens, top_k, -1), x.dtype)


def _weighted(weights: torch.Tensor, out: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weights [T, k], out [T, k, H] -> [T, H]."""
    return torch.bmm(weights.float().unsqueeze(1), out.float()).squeeze(1).to(dtype)
