"""Attention over paged keys and values with torch operations.

Nothing but a sequence's own tokens is read: not the tail of its last page, and not the pages that fill up its table. A
mask is no help against what a stranger left there, since 0 * NaN is NaN.

Legend: T tokens, D decode rows, H query heads, K kv heads (H a multiple of K), d head dim, L context length.
"""

import torch
import torch.nn.functional as F

from splitrank.models.cache import KVPages
from splitrank.models.rounding import pages_needed


def write_pages(cache: KVPages, kv_index: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Stores k, v [T, K, d] at flat positions ``kv_index`` [T] (page * page_size + offset)."""
    cache.keys.view(-1, *k.shape[1:]).index_copy_(0, kv_index, k)
    cache.values.view(-1, *v.shape[1:]).index_copy_(0, kv_index, v)


def decode_attention(q: torch.Tensor, cache: KVPages, pages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One query a sequence: q [D, H, d], pages [D, P], lengths [D] -> [D, H, d].

    Row by row, each over its exact length, which also makes a row's bits its own.
    """
    num_rows, num_heads, dim = q.shape
    kv_heads = cache.keys.shape[2]
    # The heads of a kv group are rows of one small GEMM: [K, H/K, d] x [K, d, L].
    grouped = q.reshape(num_rows, 1, kv_heads, num_heads // kv_heads, dim)
    rows = [
        F.scaled_dot_product_attention(query, *_context(cache, table, length))
        for query, table, length in zip(grouped, pages, lengths.tolist(), strict=True)
    ]
    return torch.cat(rows).view(num_rows, num_heads, dim)


def prefill_attention(q: torch.Tensor, cache: KVPages, start: int, pages: torch.Tensor) -> torch.Tensor:
    """Causal attention of one chunk over all its context: q [T, H, d] at positions from ``start``, pages [P] ->
    [T, H, d]."""
    length, num_heads, _ = q.shape
    context = start + length
    groups = num_heads // cache.keys.shape[2]
    keys, values = (t.repeat_interleave(groups, dim=1) for t in _context(cache, pages, context))
    queries = q.transpose(0, 1)[None]  # [1, H, T, d]
    if start == 0:
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    else:
        rows = torch.arange(start, context)
        mask = torch.arange(context) <= rows[:, None]  # [T, L]
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return out[0].transpose(0, 1)


def _context(cache: KVPages, table: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the first ``length`` tokens of one sequence: table [P] -> [1, K, length, d] each."""
    pages = table[: pages_needed(length, cache.keys.shape[1])]
    keys, values = (
        of_layer.index_select(0, pages).flatten(0, 1)[None, :length].transpose(1, 2)
        for of_layer in (cache.keys, cache.values)
    )
    return keys, values
