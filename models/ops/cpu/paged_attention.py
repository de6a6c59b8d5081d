"""Attention over paged keys and values with torch operations.

Legend: T tokens, D decode rows, H query heads, K kv heads (H a multiple of K), d head dim, L context length.
"""

import torch
import torch.nn.functional as F

from splitrank.models.cache import KVPages


def write_pages(cache: KVPages, kv_index: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Stores k, v [T, K, d] at flat positions ``kv_index`` [T] (page * page_size + offset)."""
    cache.keys.view(-1, *k.shape[1:]).index_copy_(0, kv_index, k)
    cache.values.view(-1, *v.shape[1:]).index_copy_(0, kv_index, v)


def decode_attention(q: torch.Tensor, cache: KVPages, pages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """One query a sequence: q [D, H, d], pages [D, P], lengths [D] -> [D, H, d]."""
    num_rows, num_heads, dim = q.shape
    kv_heads = cache.keys.shape[2]
    keys, values = _gather(cache.keys, pages), _gather(cache.values, pages)  # [D, K, L, d]
    mask = torch.arange(keys.shape[2]) < lengths[:, None]  # [D, L]
    # The heads of a kv group are rows of one small GEMM: [D, K, H/K, d] x [D, K, d, L].
    grouped = q.reshape(num_rows, kv_heads, num_heads // kv_heads, dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask[:, None, None])
    return out.reshape(num_rows, num_heads, dim)


def prefill_attention(q: torch.Tensor, cache: KVPages, start: int, pages: torch.Tensor) -> torch.Tensor:
    """Causal attention of one chunk over all its context: q [T, H, d] at positions from ``start``, pages [P] ->
    [T, H, d]."""
    length, num_heads, _ = q.shape
    context = start + length
    pages = pages[: -(-context // cache.keys.shape[1])]
    groups = num_heads // cache.keys.shape[2]
    keys, values = (_gather(t, pages[None])[:, :, :context] for t in (cache.keys, cache.values))
    keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
    queries = q.transpose(0, 1)[None]  # [1, H, T, d]
    if start == 0:
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    else:
        rows = torch.arange(start, context)
        mask = torch.arange(context) <= rows[:, None]  # [T, L]
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return out[0].transpose(0, 1)


def _gather(pages_of_layer: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """[num_pages, page_size, K, d], [D, P] -> [D, K, P * page_size, d]."""
    num_rows, num_pages = pages.shape
    flat = pages_of_layer.index_select(0, pages.reshape(-1))
    return flat.view(num_rows, num_pages * flat.shape[1], *flat.shape[2:]).transpose(1, 2)
