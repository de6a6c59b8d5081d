"""The gated delta rule: one step for decode, and the chunked form for prefill.

S <- exp(g) S;  S <- S + k (beta (v - k^T S));  o = q^T S;  q and k have length 1, and q is scaled by 1/sqrt(d).
State and arithmetic are float32. The chunked form and its block of 64 follow
``transformers``' ``torch_chunk_gated_delta_rule``; ``reference.delta_rule`` is the specification of both.
Legend: T tokens, D decode rows, K key heads, H value heads (a multiple of K), d key head dim, v value head dim,
N blocks, B tokens of a block.
"""

import torch
import torch.nn.functional as F

BLOCK = 64
_NORM_EPS = 1e-6


def delta_rule_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """One token of D sequences: q, k [D, K, d], v [D, H, v], log_decay, beta [D, H]; states [slots, H, d, v] updated.

    The old state is read once for both products: with S' = a S + k u^T, q^T S' = a q^T S + (q.k) u^T. States are walked
    one by one and in place: gathering them would copy half a megabyte a row and layer.
    """
    repeats = v.shape[1] // q.shape[1]
    q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
    q_and_k = torch.stack((q, k), dim=2).repeat_interleave(repeats, dim=1)  # [D, H, 2, d]
    decay = log_decay.exp()[..., None, None]
    rows = [states[slot] for slot in slots.tolist()]  # D views [H, d, v]
    read = torch.stack([torch.bmm(pair, state) for pair, state in zip(q_and_k, rows, strict=True)])
    read = read.mul_(decay)  # [D, H, 2, v]
    update = (v.float() - read[:, :, 1]).mul_(beta.float()[..., None])
    overlap = (q * k).sum(-1).repeat_interleave(repeats, dim=1)[..., None]
    for state, factor, key, new in zip(rows, decay, q_and_k[:, :, 1, :, None], update[:, :, None], strict=True):
        state.mul_(factor).addcmul_(key, new)
    return (read[:, :, 0] + overlap * update).to(v.dtype)


def chunked_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> torch.Tensor:
    """T tokens of one sequence: q, k [T, K, d], v [T, H, v], log_decay, beta [T, H] -> [T, H, v].

    Inside a block the updates form a unit lower-triangular system; between blocks ``state`` [H, d, v] is carried, and
    it is updated in place.
    """
    length = v.shape[0]
    repeats = v.shape[1] // q.shape[1]
    q, k = (_blocks(_unit(x).repeat_interleave(repeats, dim=1)) for x in (q, k))  # [H, N, B, d]
    q = q * q.shape[-1] ** -0.5
    values, beta = _blocks(v.float()), _blocks(beta.float().unsqueeze(-1))
    log_decay = _blocks(log_decay.unsqueeze(-1)).squeeze(-1).cumsum(-1)  # [H, N, B], since the block's start
    upper = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1)
    pairwise = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).masked_fill_(upper, -torch.inf).exp_()
    decay = log_decay.exp().unsqueeze(-1)

    weighted_keys = k * beta
    keys_transposed = k.transpose(-1, -2)
    system = (weighted_keys @ keys_transposed).mul_(pairwise)
    within = (q @ keys_transposed).mul_(pairwise)
    right = torch.cat((values * beta, weighted_keys * decay), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new_values, old_reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    q_decayed = q * decay
    k_to_end = (k * (log_decay[..., -1:] - log_decay).exp().unsqueeze(-1)).transpose(-1, -2)
    block_decay = log_decay[..., -1].exp()[..., None, None]
    out = torch.empty_like(values)
    for block in range(values.shape[1]):
        corrected = new_values[:, block] - old_reads[:, block] @ state
        out[:, block] = q_decayed[:, block] @ state + within[:, block] @ corrected
        state.mul_(block_decay[:, block]).add_(k_to_end[:, block] @ corrected)
    return out.flatten(1, 2)[:, :length].transpose(0, 1).to(v.dtype)


def _unit(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + _NORM_EPS)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """[T, H, n] -> [H, N, 64, n], padded with zeros (a zero beta and key leave the state alone)."""
    length = x.shape[0]
    padding = -length % BLOCK
    x = F.pad(x, (0, 0, 0, 0, 0, padding)).transpose(0, 1)
    return x.reshape(x.shape[0], (length + padding) // BLOCK, BLOCK, x.shape[-1])
