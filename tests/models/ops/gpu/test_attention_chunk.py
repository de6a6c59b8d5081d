"""Attention of prompt tokens over pages, with norm, rotary, page write and gate, against the dense specification."""

from typing import NamedTuple

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.cpu.rotary import rotate
from splitrank.models.ops.gpu.attention_chunk import attention_chunk, prepare_attention
from splitrank.models.ops.gpu.sequences import Sequences, place
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import pages_needed
from tests.models.ops.gpu.comparison import assert_near, nan, normal

PREPARE, ATTEND = Tile(num_warps=4, sizes={"t": 16}), Tile(num_warps=4, sizes={"m": 64, "n": 32})
LENGTHS, STARTS = [65, 1, 130, 63], [0, 64, 128, 64]
DIM, ROTARY, EPS = 32, 8, 1e-6


class Layer(NamedTuple):
    projected: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def tables(page_size: int, lengths: list[int], starts: list[int]) -> list[list[int]]:
    """Pages in no order, none used twice, page 0 by nobody."""
    counts = [pages_needed(length + start, page_size) for length, start in zip(lengths, starts, strict=True)]
    order = (torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)) + 1).tolist()
    return [order[sum(counts[:n]) : sum(counts[: n + 1])] for n in range(len(counts))]


def places(table: list[int], page_size: int, start: int, stop: int) -> torch.Tensor:
    return torch.tensor(
        [table[t // page_size] * page_size + t % page_size for t in range(start, stop)], dtype=torch.int64
    )


def example(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    page_size: int,
    lengths: list[int],
    starts: list[int],
) -> tuple[Layer, list[list[int]], Sequences]:
    """Pages are NaN but for the context before each run."""
    pages = tables(page_size, lengths, starts)
    sequences = place(lengths, starts, [0] * len(lengths), pages, device)
    keys, values = (nan(device, dtype, 2 + sum(map(len, pages)), page_size, kv_heads, DIM) for _ in range(2))
    for table, start in zip(pages, starts, strict=True):
        for cache in (keys, values):
            cache.view(-1, kv_heads, DIM)[places(table, page_size, 0, start)] = normal(
                device, dtype, start, kv_heads, DIM
            )
    runs = [torch.arange(start, start + length) for length, start in zip(lengths, starts, strict=True)]
    angles = torch.cat(runs).to(device)[:, None] * 1e4 ** (-torch.arange(ROTARY // 2, device=device) / (ROTARY // 2))
    projected = normal(device, dtype, sequences.num_rows, 2 * (heads + kv_heads) * DIM + 8)[:, :-8]
    weights = normal(device, dtype, 2, DIM, scale=0.2)
    return Layer(projected, *weights, angles.cos(), angles.sin(), keys, values), pages, sequences


def run(layer: Layer, sequences: Sequences) -> torch.Tensor:
    projected = layer.projected.clone()
    prepare_attention(
        projected,
        layer.q_weight,
        layer.k_weight,
        EPS,
        layer.cos,
        layer.sin,
        layer.keys,
        layer.values,
        sequences,
        PREPARE,
    )
    return attention_chunk(projected, layer.keys, layer.values, sequences, ATTEND)


def turned(x: torch.Tensor, weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    normed = reference.rms_norm(x.double().cpu(), 1 + weight.double().cpu(), EPS)
    cos, sin = (torch.cat((angle, angle), -1).double().cpu()[:, None] for angle in (layer.cos, layer.sin))
    return rotate(normed, cos, sin)


@pytest.mark.parametrize(
    ("dtype", "page_size", "heads", "kv_heads"),
    [
        (torch.bfloat16, 64, 4, 2),
        (torch.float32, 16, 4, 1),
        (torch.bfloat16, 5, 3, 3),
        (torch.float32, 256, 2, 1),
    ],
)
def test_attention(device: torch.device, dtype: torch.dtype, page_size: int, heads: int, kv_heads: int) -> None:
    layer, pages, sequences = example(device, dtype, heads, kv_heads, page_size, LENGTHS, STARTS)
    untouched = layer.keys[0].clone()
    out = run(layer, sequences)
    q_gate, k, v = layer.projected.split([2 * heads * DIM, kv_heads * DIM, kv_heads * DIM], 1)
    q, gate = q_gate.reshape(-1, heads, 2 * DIM).chunk(2, -1)
    q, k = turned(q, layer.q_weight, layer), turned(k.reshape(-1, kv_heads, DIM), layer.k_weight, layer)
    keys, values = (cache.view(-1, kv_heads, DIM).cpu() for cache in (layer.keys, layer.values))
    stops = torch.tensor(LENGTHS).cumsum(0).tolist()
    for table, length, stop, start in zip(pages, LENGTHS, stops, STARTS, strict=True):
        here, new = slice(stop - length, stop), places(table, page_size, start, start + length)
        assert_near(keys[new], k[here])
        assert torch.equal(values[new], v[here].reshape(-1, kv_heads, DIM).cpu())
        context = places(table, page_size, 0, start + length)
        expected = reference.attention(q[here], keys[context].double(), values[context].double(), start)
        expected *= gate[here].double().cpu().sigmoid()
        assert_near(out[here].view(-1, heads, DIM), expected)
    assert untouched.isnan().all()
    assert layer.keys[0].isnan().all()


def test_a_sequence_has_the_same_bits_alone_in_chunks_and_among_others(device: torch.device) -> None:
    dtype, length, page_size = torch.bfloat16, 136, 16
    layer, pages, sequences = example(device, dtype, 2, 1, page_size, [length], [0])
    whole = run(layer, sequences)
    for first, stop in ((0, 64), (64, 136)):
        part = layer._replace(
            projected=layer.projected[first:stop], cos=layer.cos[first:stop], sin=layer.sin[first:stop]
        )
        assert torch.equal(run(part, place([stop - first], [first], [0], pages, device)), whole[first:stop])
    crowd, _, sequences = example(device, dtype, 2, 1, page_size, [70, length, 3], [64, 0, 0])
    rows = slice(70, 70 + length)
    crowd.projected[rows] = layer.projected
    crowd = crowd._replace(q_weight=layer.q_weight, k_weight=layer.k_weight)
    assert torch.equal(run(crowd, sequences)[rows], whole)
