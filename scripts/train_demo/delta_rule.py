"""The gated delta rule in chunks, for training: plain torch operations, every one with a sound backward pass.

fla-core's backward is wrong on Hopper with Triton 3.4 to 3.7.0, and the triangular solver that transformers' own
torch version uses runs one small matrix after the other on a GPU. Here the triangular matrix of a chunk is inverted
by products: blocks of 16 by doubling, then 2 x 2 block inverses up to the chunk. Doubling alone would lose all digits
at 64 (for equal keys its powers grow like binomials of 63); at 16 they stay below 6,435.

Shapes: B batch, T tokens, H value heads, G key heads, K and V their sizes, N chunks, C chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
_BLOCK = 16


def chunked_delta_rule(q_BTGK: Tensor, k_BTGK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor) -> Tensor:
    """Outputs [B, T, H, V] in float32. ``g`` is the decay's logarithm; queries and keys are normalised here. The state
    starts at zero."""
    batch, tokens, heads, _ = v_BTHV.shape
    inputs = (_unit(q_BTGK) * q_BTGK.shape[-1] ** -0.5, _unit(k_BTGK), v_BTHV, g_BTH[..., None], beta_BTH[..., None])
    outputs = _scan(*within_chunks(*map(_chunks, inputs)))
    return outputs.reshape(batch, heads, -1, v_BTHV.shape[-1])[:, :, :tokens].transpose(1, 2)


def within_chunks(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What needs no state, for all chunks at once; all [B, heads, N, C, ...]."""
    group = value.shape[1] // key.shape[1]
    query, key = query.repeat_interleave(group, dim=1), key.repeat_interleave(group, dim=1)
    log_decay = g.squeeze(-1).cumsum(dim=-1)
    causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=query.device).tril()
    between = log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)
    decay = between.masked_fill(~causal, float("-inf")).exp()
    since_start = log_decay.exp().unsqueeze(-1)
    until_end = (log_decay[..., -1:] - log_decay).exp().unsqueeze(-1)

    key_beta = key * beta
    inverse = invert_unit_lower((key_beta @ key.mT * decay).tril(-1))
    new_values, read_keys = inverse @ (value * beta), inverse @ (key_beta * since_start)
    inside = query @ key.mT * decay
    return query * since_start, key * until_end, new_values, read_keys, inside, log_decay[..., -1].exp()


def _scan(query: Tensor, key: Tensor, new_values: Tensor, read_keys: Tensor, inside: Tensor, fade: Tensor) -> Tensor:
    """Carries the state from chunk to chunk; all [B, H, N, ...]."""
    batch, heads, num_chunks = fade.shape
    state = query.new_zeros(batch, heads, key.shape[-1], new_values.shape[-1])
    outputs = []
    for index in range(num_chunks):
        corrected = new_values[:, :, index] - read_keys[:, :, index] @ state
        outputs.append(query[:, :, index] @ state + inside[:, :, index] @ corrected)
        state = state * fade[:, :, index, None, None] + key[:, :, index].mT @ corrected
    return torch.stack(outputs, dim=2)


def invert_unit_lower(strict: Tensor) -> Tensor:
    """(I + strict)^-1 for strictly lower triangular matrices [..., n, n], n = 16 times a power of two."""
    size = strict.shape[-1]
    if size == _BLOCK:
        eye = torch.eye(size, dtype=strict.dtype, device=strict.device)
        inverse, power = eye - strict, strict @ strict
        for _ in range(2):
            inverse, power = inverse + inverse @ power, power @ power
        return inverse + inverse @ power
    half = size // 2
    first, second = invert_unit_lower(torch.stack((strict[..., :half, :half], strict[..., half:, half:]))).unbind()
    below = -second @ (strict[..., half:, :half] @ first)
    return torch.cat((F.pad(first, (0, half)), torch.cat((below, second), dim=-1)), dim=-2)


def _chunks(x_BTHD: Tensor) -> Tensor:
    """[B, H, N, C, D] in float32; the end is filled with zeros, which change nothing before them."""
    batch, tokens, heads, size = x_BTHD.shape
    padded = F.pad(x_BTHD.float(), (0, 0, 0, 0, 0, -tokens % CHUNK))
    return padded.transpose(1, 2).reshape(batch, heads, -1, CHUNK, size)


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
