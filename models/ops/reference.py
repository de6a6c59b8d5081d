"""The slow, obvious version of each operation: the specification that every fast one is tested against.

One token, one head, one expert at a time, in the dtype of the arguments (tests pass float64). Nothing is updated in
place: new states are returned. Legend: T tokens, L context, H heads, K key or kv heads, d and v head dims, E experts.
"""

from typing import Any

import torch


def rms_norm(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., d] / rms(x) * scale [d]; the zero-centred norms pass 1 + weight."""
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * scale


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def causal_conv(x: torch.Tensor, state: torch.Tensor, taps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, C], state [K - 1, C] (inputs before x), taps [K, C], oldest first -> silu of the sums [T, C], new state."""
    num_taps = taps.shape[0]
    inputs = torch.cat((state, x))
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for tap in range(num_taps):
            out[token] += taps[tap] * inputs[token + tap]
    return silu(out), inputs[inputs.shape[0] - (num_taps - 1) :]


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule, token by token: q, k [T, K, d], v [T, H, v], log_decay, beta [T, H], state [H, d, v].

    Each of the K key heads serves H / K consecutive value heads. Returns outputs [T, H, v] and the new state.
    """
    state, out = state.clone(), torch.zeros_like(v)
    num_tokens, num_heads, _ = v.shape
    for token in range(num_tokens):
        for head in range(num_heads):
            key_head = head * k.shape[1] // num_heads
            query = _unit(q[token, key_head], eps) / q.shape[-1] ** 0.5
            key = _unit(k[token, key_head], eps)
            decayed = log_decay[token, head].exp() * state[head]
            correction = beta[token, head] * (v[token, head] - key @ decayed)
            state[head] = decayed + torch.outer(key, correction)
            out[token, head] = query @ state[head]
    return out, state


def _unit(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).sum() + eps).sqrt()


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int) -> torch.Tensor:
    """Dense causal attention: q [T, H, d] at positions from ``start`` on; k, v [L, K, d] from 0 on -> [T, H, d]."""
    num_tokens, num_heads, dim = q.shape
    visible = torch.arange(k.shape[0]) <= torch.arange(start, start + num_tokens)[:, None]
    out = torch.empty_like(q)
    for head in range(num_heads):
        kv_head = head * k.shape[1] // num_heads
        scores = q[:, head] @ k[:, kv_head].t() / dim**0.5
        weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
        out[:, head] = weights @ v[:, kv_head]
    return out


def route(logits: torch.Tensor, top_k: int) -> tuple[list[list[int]], torch.Tensor]:
    """logits [T, E] -> the experts of each token, likeliest first, and their shares [T, top_k], which sum to 1."""
    chosen, shares = [], []
    for row in torch.softmax(logits, dim=-1):
        best = row.argsort(descending=True, stable=True)[:top_k].tolist()
        chosen.append(best)
        shares.append(row[best] / row[best].sum())
    return chosen, torch.stack(shares)


def routed_experts(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """x [T, H], experts and weights [T, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> [T, H]."""
    out, inner = torch.zeros_like(x), down.shape[-1]
    for token in range(x.shape[0]):
        for slot in range(experts.shape[1]):
            expert = int(experts[token, slot])
            gate, up = gate_up[expert, :inner] @ x[token], gate_up[expert, inner:] @ x[token]
            out[token] += weights[token, slot] * (down[expert] @ (silu(gate) * up))
    return out


def sampling_weights(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> torch.Tensor:
    """logits [V] -> weights [V]: 1 for the best, 0 for what top-k, then top-p, then min-p leave out; sums in float64.

    Tokens as good as the k-th are all kept; of equally heavy ones top-p takes those with the smaller ids first.
    """
    scaled = (logits - logits.max()) / max(temperature, torch.finfo(logits.dtype).tiny)
    weights = scaled.exp()
    if 0 < top_k < len(logits):
        weights[logits < logits.sort(descending=True).values[top_k - 1]] = 0.0
    if top_p < 1.0:
        ordered, order = weights.double().sort(descending=True, stable=True)
        weights[order[ordered.cumsum(0) - ordered >= top_p * ordered.sum()]] = 0.0
    weights[weights < min_p] = 0.0
    return weights


def sample_row(logits: torch.Tensor, uniform: float, temperature: float, **filters: Any) -> int:
    """logits [V] -> token: the first whose cumulative weight is above ``uniform`` of the whole; greedy at 0."""
    if temperature == 0.0:
        return int(logits.argmax())
    cumulative = sampling_weights(logits, temperature, **filters).double().cumsum(0)
    return int((cumulative > uniform * cumulative[-1]).nonzero()[0])
