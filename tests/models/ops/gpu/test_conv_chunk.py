"""Convolution, unit length and gates of several sequences against the explicit sums."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.conv_chunk import DeltaInputs, conv_chunk
from splitrank.models.ops.gpu.sequences import Sequences, place
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import assert_near, normal

TILE = Tile(num_warps=4, sizes={"heads": 2})
# Lengths, starts and slots: a run shorter than the state, with and without one before it, and many.
FEW = ([66, 1, 2, 1], [0, 64, 128, 0], [3, 0, 2, 5])
MANY = ([65, 1, 130, 2, 63, 3, 64], [0, 64, 128, 0, 64, 64, 0], [3, 0, 2, 5, 6, 7, 8])
Runs = tuple[list[int], list[int], list[int]]
DIM = 16


class Layer(NamedTuple):
    projected: torch.Tensor
    taps: torch.Tensor
    decay_rate: torch.Tensor
    dt_bias: torch.Tensor
    ring: torch.Tensor


def example(device: torch.device, dtype: torch.dtype, key_heads: int, heads: int, rows: int, taps: int = 4) -> Layer:
    channels = (2 * key_heads + heads) * DIM
    return Layer(
        normal(device, dtype, rows, channels + heads * (DIM + 2) + 8)[:, :-8],
        normal(device, torch.float32, taps, channels),
        -torch.rand(heads, device=device),
        normal(device, torch.float32, heads, scale=3.0),
        normal(device, dtype, 10, taps, channels),
    )


def run(layer: Layer, sequences: Sequences, key_heads: int) -> DeltaInputs:
    return conv_chunk(*layer, sequences, key_heads, TILE)


@pytest.mark.parametrize(
    ("dtype", "key_heads", "heads", "taps", "runs"),
    [
        (torch.bfloat16, 2, 2, 4, MANY),
        (torch.float32, 1, 2, 4, FEW),
        (torch.bfloat16, 1, 1, 2, FEW),
        (torch.float32, 1, 1, 3, FEW),
    ],
)
def test_conv_chunk(
    device: torch.device, dtype: torch.dtype, key_heads: int, heads: int, taps: int, runs: Runs
) -> None:
    lengths, starts, slots = runs
    sequences = place(lengths, starts, slots, [[0]] * len(slots), device)
    layer = example(device, dtype, key_heads, heads, sequences.num_rows, taps)
    # A new sequence sees nothing of what its slot holds, and no slot of others is touched.
    for slot in (1, 4, 9, *(slot for slot, start in zip(slots, starts, strict=True) if start == 0)):
        layer.ring[slot] = torch.nan
    before = layer.ring.double().cpu()
    found = run(layer, sequences, key_heads)
    channels, key_dim = layer.taps.shape[1], key_heads * DIM
    projected = layer.projected.double().cpu()
    stops = torch.tensor(lengths).cumsum(0).tolist()
    for length, stop, start, slot in zip(lengths, stops, starts, slots, strict=True):
        here = slice(stop - length, stop)
        places = torch.arange(start, start + length + taps) % taps  # of the inputs from start - taps on
        state = before[slot, places[1:taps]] if start else torch.zeros_like(before[slot, 1:])
        mixed, state = reference.causal_conv(projected[here, :channels], state, layer.taps.double().cpu())
        q, k, v = mixed.split([key_dim, key_dim, heads * DIM], 1)
        assert_near(found.q[here], F.normalize(q.view(-1, key_heads, DIM), dim=-1))
        assert_near(found.k[here], F.normalize(k.view(-1, key_heads, DIM), dim=-1))
        assert_near(found.v[here], v.view(-1, heads, DIM))
        last = min(taps, length)
        inputs = projected[here, :channels][length - last :]
        assert torch.equal(layer.ring[slot, places[-last:]].double().cpu(), inputs)
        assert length < taps or torch.equal(inputs[1:], state)
        kept = [place for place in range(taps) if place not in places[-last:]]
        torch.testing.assert_close(
            layer.ring[slot, kept].double().cpu(), before[slot, kept], rtol=0, atol=0, equal_nan=True
        )
    assert layer.ring[[1, 4, 9]].isnan().all()
    b, a = projected[:, -2 * heads : -heads], projected[:, -heads:]
    assert_near(found.beta, b.sigmoid(), 1e-6)
    expected = layer.decay_rate.double().cpu() * F.softplus(a + layer.dt_bias.double().cpu())
    # Only its exponential counts: log(1 + e^a) for a << 0 is good to 2^-24 of 1, not of itself.
    torch.testing.assert_close(found.log_decay.double().cpu(), expected, atol=2e-7, rtol=1e-6)


def test_a_prompt_in_chunks_has_the_bits_of_the_whole(device: torch.device) -> None:
    layer = example(device, torch.bfloat16, 1, 1, 67)
    whole = run(layer, place([67], [0], [3], [[0]], device), 1)
    state = layer.ring[3].clone()
    for first, stop in ((0, 64), (64, 67)):
        part = layer._replace(projected=layer.projected[first:stop])
        found = run(part, place([stop - first], [first], [5], [[0]], device), 1)
        assert all(torch.equal(a, b[first:stop]) for a, b in zip(found, whole, strict=True))
    assert torch.equal(layer.ring[5], state)
