"""The gated delta rule in chunks, for training: plain torch operations, every one with a sound backward pass.

fla-core's backward is wrong on Hopper with Triton 3.4 to 3.7.0, and the triangular solver that transformers' own
torch version uses runs one small matrix after the other on a GPU. Here the triangular matrix of a chunk is inverted
by products: blocks of 4 by doubling, then 2 x 2 block inverses up to the chunk. Doubling alone would lose all digits
at 64 (for equal keys its powers grow like binomials of 63); at 4 they stay below 4, which TF32 stands too. The
inverse's gradient needs the inverse alone, so nothing in between is kept.

Shapes: B batch, T tokens, H value heads, G key heads, K and V their sizes, N chunks, C chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
_BLOCK = 4


def chunked_delta_rule(q_BTGK: Tensor, k_BTGK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor) -> Tensor:
    """Outputs [B, T, H, V] in float32. ``g`` is the decay's logarithm; queries and keys are normalised here. The state
    starts at zero."""
    batch, tokens, heads, _ = v_BTHV.shape
    inputs = [_whole_chunks(x) for x in (q_BTGK, k_BTGK, v_BTHV, g_BTH[..., None], beta_BTH[..., None])]
    query, key, value, beta, decay, between = chunks(*inputs)
    inverse: Tensor = InvertUnitLower.apply(strict_part(key, beta, between))  # type: ignore[no-untyped-call]
    outputs = _scan(*within_chunks(query, key, value, beta, decay, between, inverse))
    return outputs.reshape(batch, heads, -1, v_BTHV.shape[-1])[:, :, :tokens].transpose(1, 2)


def chunks(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query, key, value [B, H, N, C, K or V], beta [B, H, N, C, 1], the decay's logarithm since the chunk's start
    [B, H, N, C], and the decay from a token to a later one of its chunk [B, H, N, C, C], zero above the diagonal."""
    group = value.shape[2] // key.shape[2]
    query = _chunks(_unit(query) * query.shape[-1] ** -0.5).repeat_interleave(group, dim=1)
    key = _chunks(_unit(key)).repeat_interleave(group, dim=1)
    log_decay = _chunks(g).squeeze(-1).cumsum(dim=-1)
    causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=query.device).tril()
    between = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).masked_fill(~causal, float("-inf")).exp()
    return query, key, _chunks(value), _chunks(beta), log_decay, between


def strict_part(key: Tensor, beta: Tensor, between: Tensor) -> Tensor:
    """What each token's write takes away from later reads of its chunk [B, H, N, C, C], strictly lower triangular."""
    return (key @ key.mT * between * beta).tril(-1)


def within_chunks(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, log_decay: Tensor, between: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What else needs no state, for all chunks at once; all [B, H, N, C, ...]."""
    since_start = log_decay.exp().unsqueeze(-1)
    until_end = (log_decay[..., -1:] - log_decay).exp().unsqueeze(-1)
    new_values, read_keys = inverse @ (value * beta), inverse @ (key * (beta * since_start))
    inside = query @ key.mT * between
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


class InvertUnitLower(torch.autograd.Function):
    """``invert_unit_lower`` with the gradient of an inverse: -X^T dX X^T, of which the caller's ``tril`` keeps its
    part."""

    @staticmethod
    def forward(context: Any, strict: Tensor) -> Tensor:
        inverse = invert_unit_lower(strict)
        context.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (inverse,) = context.saved_tensors
        wanted: Tensor = -(inverse.mT @ gradient @ inverse.mT)
        return wanted


def invert_unit_lower(strict: Tensor) -> Tensor:
    """(I + strict)^-1 for strictly lower triangular matrices [..., n, n], n = 4 times a power of two."""
    size = strict.shape[-1]
    if size == _BLOCK:
        eye = torch.eye(size, dtype=strict.dtype, device=strict.device)
        return (eye - strict) @ (eye + strict @ strict)
    half = size // 2
    first, second = invert_unit_lower(torch.stack((strict[..., :half, :half], strict[..., half:, half:]))).unbind()
    inverse = torch.zeros_like(strict)
    inverse[..., :half, :half] = first
    inverse[..., half:, half:] = second
    inverse[..., half:, :half] = -second @ (strict[..., half:, :half] @ first)
    return inverse


def _whole_chunks(x_BTHD: Tensor) -> Tensor:
    """The end is filled with zeros, which change nothing before them."""
    missing = -x_BTHD.shape[1] % CHUNK
    return F.pad(x_BTHD, (0, 0, 0, 0, 0, missing)) if missing else x_BTHD  # F.pad by nothing copies


def _chunks(x_BTHD: Tensor) -> Tensor:
    """[B, H, N, C, D] in float32."""
    batch, tokens, heads, size = x_BTHD.shape
    return x_BTHD.float().reshape(batch, tokens // CHUNK, CHUNK, heads, size).permute(0, 3, 1, 2, 4).contiguous()


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
