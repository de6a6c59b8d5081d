"""Routing and the routed experts with torch operations.

Legend: T tokens, E experts, k experts a token, I inner width of this rank, H hidden size.
"""

import torch
import torch.nn.functional as F


def route(logits: torch.Tensor, top_k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [T, E] -> expert ids [T, k], weights [T, k] that sum to 1 (softmax in float32, then normalised)."""
    weights, experts = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), top_k, dim=-1)
    return experts, (weights / weights.sum(-1, keepdim=True)).to(dtype)


def routed_experts(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """x [T, H], experts and weights [T, k], gate_up [E, 2I, H], down [E, H, I] -> [T, H], this rank's share.

    Tokens are sorted by expert once, so that each expert costs two GEMMs into a shared buffer and nothing else.
    """
    num_tokens, top_k = experts.shape
    order = experts.view(-1).argsort(stable=True)
    counts = torch.bincount(experts.view(-1), minlength=gate_up.shape[0]).tolist()
    runs = _runs(counts)
    sorted_x = x[order // top_k]
    hidden = x.new_empty((len(order), gate_up.shape[1]))
    for expert, rows in runs:
        torch.mm(sorted_x[rows], gate_up[expert].t(), out=hidden[rows])
    gate, up = hidden.chunk(2, dim=-1)
    inner = F.silu(gate) * up
    out = x.new_empty((len(order), x.shape[1]))
    for expert, rows in runs:
        torch.mm(inner[rows], down[expert].t(), out=out[rows])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    per_token = out[back].view(num_tokens, top_k, -1)
    return torch.matmul(weights.float().unsqueeze(1), per_token.float()).squeeze(1).to(x.dtype)


def _runs(counts: list[int]) -> list[tuple[int, slice]]:
    """Expert and its rows among the sorted tokens, for experts that have any."""
    runs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            runs.append((expert, slice(start, start + count)))
        start += count
    return runs
