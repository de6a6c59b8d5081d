"""Routing and the routed experts with torch operations.

Legend: T tokens, E experts, k experts a token, H hidden size.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from splitrank.models.ops.cpu.linear import linear, pack
from splitrank.models.ops.cpu.memory import release

Expert = Callable[[torch.Tensor], torch.Tensor]  # [n, H] -> [n, H], this rank's part


def route(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] -> expert ids [T, k], weights [T, k] that sum to 1 (softmax in float32, then normalised)."""
    weights, experts = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), top_k, dim=-1)
    return experts, (weights / weights.sum(-1, keepdim=True)).to(dtype)


def swiglu(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """x [T, H], gate_up [2I, H] (gate rows first) and down [H, I] from ``pack`` -> [T, H]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate).mul_(up), down)


def stored_experts(gate_up: torch.Tensor, down: torch.Tensor) -> list[Expert]:
    """gate_up [E, 2I, H], down [E, H, I] -> one function an expert.

    oneDNN packs a matrix at a time, so the experts are packed one by one, and what is packed is given back at once.
    """
    experts: list[Expert] = []
    for expert in zip(gate_up, down, strict=True):
        packed = [pack(weight) for weight in expert]
        for plain, stored in zip(expert, packed, strict=True):
            if stored is not plain:
                release(plain)
        experts.append(partial(swiglu, gate_up=packed[0], down=packed[1]))
    return experts


def routed_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: Sequence[Expert],
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
