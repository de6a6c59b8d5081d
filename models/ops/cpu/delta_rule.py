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
    read = torch.empty((len(rows), *v.shape[1:2], 2, v.shape[2]))  # [D, H, 2, v]
    for pair, state, both in zip(q_and_k, rows, read, strict=True):
        torch.bmm(pair, state, out=both)
    read.mul_(decay)
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
    length, num_heads, value_dim = v.shape
    key_heads, key_dim = q.shape[1:]
    grouped = (key_heads, num_heads // key_heads)  # [K, r]: r value heads share a key head
    q, k = _blocks(_unit(q)).unsqueeze(1) * key_dim**-0.5, _blocks(_unit(k)).unsqueeze(1)  # [K, 1, N, B, d]
    per_value_head = (v.float(), beta.float()[..., None], log_decay[..., None])
    values, beta, log_decay = (_blocks(x).reshape(*grouped, -1, BLOCK, x.shape[-1]) for x in per_value_head)
    log_decay = log_decay.squeeze(-1).cumsum(-1)  # since the block's start: [K, r, N, B]
    decay = log_decay.exp().unsqueeze(-1)
    pairwise = _pairwise_decay(log_decay)

    keys_transposed = k.transpose(-1, -2)
    system = (k @ keys_transposed * beta).mul(pairwise).flatten(0, 1)  # its products are per key head
    within = (q @ keys_transposed * pairwise).flatten(0, 1)
    # Inverting once and multiplying takes half the time of solving for all right-hand sides: LAPACK's solver is slow on
    # many small systems. (I + L)^-1 is as well conditioned as the solutions are.
    identity = torch.eye(BLOCK).expand_as(system)
    inverse = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True)
    new_values = inverse @ (values * beta).flatten(0, 1)
    old_reads = inverse @ (k * (beta * decay)).flatten(0, 1)

    reads = torch.cat((old_reads, (q * decay).flatten(0, 1)), dim=-2)  # both are multiplied by the state
    to_end = (log_decay[..., -1:] - log_decay).exp().unsqueeze(-1)
    k_to_end = (k * to_end).flatten(0, 1).transpose(-1, -2)
    block_decay = log_decay[..., -1].exp().flatten(0, 1)[..., None, None]
    out = torch.empty((num_heads, values.shape[2], BLOCK, value_dim))
    for block in range(out.shape[1]):
        read, queried = (reads[:, block] @ state).chunk(2, dim=-2)
        corrected = new_values[:, block] - read
        torch.baddbmm(queried, within[:, block], corrected, out=out[:, block])
        state.mul_(block_decay[:, block]).baddbmm_(k_to_end[:, block], corrected)
    return out.flatten(1, 2)[:, :length].transpose(0, 1).to(v.dtype)


def _pairwise_decay(log_decay: torch.Tensor) -> torch.Tensor:
    """[..., B] -> [..., B, B]: the decay from position j to position i of a block, 0 for j after i."""
    upper = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1)
    # Masked before exp: the upper half would overflow.
    return (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).masked_fill_(upper, -torch.inf).exp_()


def _unit(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + _NORM_EPS)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """[T, H, n] -> [H, N, 64, n], padded with zeros (a zero beta and key leave the state alone)."""
    length = x.shape[0]
    padding = -length % BLOCK
    x = F.pad(x, (0, 0, 0, 0, 0, padding)).transpose(0, 1)
    return x.reshape(x.shape[0], (length + padding) // BLOCK, BLOCK, x.shape[-1])
