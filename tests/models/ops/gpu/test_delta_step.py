"""The one-step delta rule against the specification, token by token: slots, rings, heads of tensor ranks, poisoned
memory that belongs to nobody."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.delta_step import delta_step
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

PLAIN = Tile(num_warps=1, form="plain", sizes={"v": 8})
NORMED = Tile(num_warps=2, form="normed")
TAPS = 4


@dataclass(frozen=True)
class Layer:
    key_heads: int
    heads: int
    dim: int
    taps: torch.Tensor
    decay_rate: torch.Tensor
    dt_bias: torch.Tensor
    norm_weight: torch.Tensor

    @property
    def channels(self) -> int:
        return (2 * self.key_heads + self.heads) * self.dim


def make_layer(device: torch.device, dtype: torch.dtype, key_heads: int, heads: int, dim: int) -> Layer:
    taps = normal(device, dtype, TAPS, (2 * key_heads + heads) * dim, scale=0.5)
    rate, bias = -normal(device, torch.float32, heads).exp(), normal(device, torch.float32, heads)
    return Layer(key_heads, heads, dim, taps, rate, bias, normal(device, torch.float32, dim))


def specification(layer: Layer, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens [L, width] of one sequence from its start -> outputs [L, H, v] before the norm, and the last state."""
    tokens = tokens.double().cpu()
    before = torch.zeros(TAPS - 1, layer.channels, dtype=torch.float64)
    mixed, _ = reference.causal_conv(tokens[:, : layer.channels], before, layer.taps.double().cpu())
    sizes = [layer.key_heads * layer.dim] * 2 + [layer.heads * layer.dim]
    q, k, v = (part.unflatten(-1, (-1, layer.dim)) for part in mixed.split(sizes, -1))
    b, a = tokens[:, -2 * layer.heads :].chunk(2, -1)
    log_decay = layer.decay_rate.double().cpu() * F.softplus(a + layer.dt_bias.double().cpu())
    state = torch.zeros(layer.heads, layer.dim, layer.dim, dtype=torch.float64)
    return reference.delta_rule(q, k, v, log_decay, torch.sigmoid(b), state)


def run(
    layer: Layer, tokens: torch.Tensor, slots: list[int], starts: list[int], tile: Tile
) -> tuple[torch.Tensor, ...]:
    """tokens [L, T, width]; row r begins at step starts[r], and is padded before: in a slot of its own, at position 0.

    -> outputs [L, T, H, v] and the state. All memory is NaN in the beginning.
    """
    device, num_slots = tokens.device, max(slots) + 3
    ring = nan(device, tokens.dtype, num_slots, TAPS, layer.channels)
    state = nan(device, torch.float32, num_slots, layer.heads, layer.dim, layer.dim)
    outputs = []
    for step, projected in enumerate(tokens):
        began = [step >= start for start in starts]
        places = [slot if here else num_slots - 1 for slot, here in zip(slots, began, strict=True)]
        positions = [max(0, step - start) for start in starts]
        index = [torch.tensor(values, dtype=torch.int32, device=device) for values in (places, positions)]
        out = nan(device, tokens.dtype, len(slots), layer.heads, layer.dim)
        constants = layer.taps, layer.decay_rate, layer.dt_bias
        delta_step(projected, ring, *constants, state, *index, layer.norm_weight, out, 1e-6, tile)
        outputs.append(out)
    unused = [slot for slot in range(num_slots - 1) if slot not in slots]
    assert state[unused].isnan().all()
    assert ring[unused].isnan().all()
    return torch.stack(outputs), state[slots]


@pytest.mark.parametrize(
    ("dtype", "key_heads", "heads", "dim", "starts"),
    [
        (torch.float32, 1, 1, 16, [0]),
        (torch.float32, 2, 4, 16, [0, 3, 1]),  # rows that begin later, in slots that hold NaN
        (torch.bfloat16, 2, 4, 16, [0, 3, 1]),
        (torch.bfloat16, 1, 4, 8, [0, 0]),  # a tensor rank's slice: one key head for all its value heads
    ],
)
def test_it_agrees_with_the_specification(
    device: torch.device, dtype: torch.dtype, key_heads: int, heads: int, dim: int, starts: list[int]
) -> None:
    layer, length = make_layer(device, dtype, key_heads, heads, dim), 7
    tokens = normal(device, dtype, length, len(starts), layer.channels + heads * (dim + 2))
    slots = [4, 1, 2][: len(starts)]
    outputs, state = run(layer, tokens, slots, starts, PLAIN)
    for row, start in enumerate(starts):
        expected, last = specification(layer, tokens[start:, row])
        assert_near(outputs[start:, row], expected)
        assert_near(state[row], last, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_norm_inside_is_the_norm_after(device: torch.device, dtype: torch.dtype) -> None:
    layer = make_layer(device, dtype, 2, 4, 16)
    tokens = normal(device, dtype, 5, 2, layer.channels + 4 * 18)
    plain, state = run(layer, tokens, [0, 2], [0, 0], PLAIN)
    normed, same_state = run(layer, tokens, [0, 2], [0, 0], NORMED)
    z = tokens[..., layer.channels : layer.channels + 64].double().view(plain.shape)
    expected = reference.rms_norm(plain.double(), layer.norm_weight.double(), 1e-6) * reference.silu(z)
    assert_near(normed, expected)
    assert_near(state, same_state, TOLERANCE[torch.float32])


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    layer = make_layer(device, torch.float32, 2, 4, 16)
    tokens = normal(device, torch.float32, 4, 3, layer.channels + 4 * 18)
    together, _ = run(layer, tokens, [5, 0, 3], [0, 0, 0], PLAIN)
    alone, _ = run(layer, tokens[:, 1:2].contiguous(), [1], [0], PLAIN)
    assert torch.equal(together[:, 1:2], alone)
