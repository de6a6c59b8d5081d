"""The one-step delta rule against the specification, token by token: slots, rings, heads of tensor ranks, the positions
at which the state is written and those between, poisoned memory that belongs to nobody."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from splitrank.models.layer_shapes import STATE_PERIOD
from splitrank.models.ops import reference
from splitrank.models.ops.gpu.delta_step import delta_step
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

TOGETHER, APART = (Tile(num_warps=1, form=form, sizes={"v": 8}) for form in ("together", "apart"))
BOTH = pytest.mark.parametrize("tile", [TOGETHER, APART], ids=["together", "apart"])
TAPS = 4
INPUTS = Tile(num_warps=1)
PROMPT = 64  # positions before the first token: of a prompt that left zeros


@dataclass(frozen=True)
class Layer:
    key_heads: int
    heads: int
    dim: int
    taps: torch.Tensor
    decay_rate: torch.Tensor
    dt_bias: torch.Tensor

    @property
    def channels(self) -> int:
        return (2 * self.key_heads + self.heads) * self.dim


def make_layer(device: torch.device, dtype: torch.dtype, key_heads: int, heads: int, dim: int) -> Layer:
    taps = normal(device, dtype, TAPS, (2 * key_heads + heads) * dim, scale=0.5)
    rate, bias = -normal(device, torch.float32, heads).exp(), normal(device, torch.float32, heads)
    return Layer(key_heads, heads, dim, taps, rate, bias)


def pending_shape(layer: Layer) -> tuple[int, int]:
    return STATE_PERIOD - 1, layer.key_heads * layer.dim + layer.heads * (layer.dim + 1)


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

    -> outputs [L, T, H, v] and the states, as they were last written. What no prompt has left is NaN in the beginning.
    """
    device, num_slots = tokens.device, max(slots) + 3
    ring = nan(device, tokens.dtype, num_slots, TAPS, layer.channels)
    state = nan(device, torch.float32, num_slots, layer.heads, layer.dim, layer.dim)
    pending = nan(device, torch.float32, num_slots, *pending_shape(layer))
    ring[slots], state[slots] = 0, 0
    outputs = []
    for step, projected in enumerate(tokens):
        began = [step >= start for start in starts]
        places = [slot if here else num_slots - 1 for slot, here in zip(slots, began, strict=True)]
        positions = [PROMPT + step - start if step >= start else 0 for start in starts]
        index = [torch.tensor(values, dtype=torch.int32, device=device) for values in (places, positions)]
        out = nan(device, tokens.dtype, len(slots), layer.heads, layer.dim)
        constants = layer.taps, layer.decay_rate, layer.dt_bias
        delta_step(projected, ring, *constants, state, pending, *index, out, tile, INPUTS)
        outputs.append(out)
    unused = [slot for slot in range(num_slots - 1) if slot not in slots]
    assert state[unused].isnan().all()
    assert ring[unused].isnan().all()
    assert pending[unused].isnan().all()
    return torch.stack(outputs), state[slots]


@pytest.mark.parametrize(
    ("tile", "dtype", "key_heads", "heads", "dim", "starts"),
    [
        (TOGETHER, torch.float32, 1, 1, 16, [0]),
        (TOGETHER, torch.float32, 2, 4, 16, [0, 3]),  # a row that begins later, in a slot that holds NaN
        (APART, torch.float32, 1, 2, 16, [0, 3]),
        (APART, torch.bfloat16, 2, 2, 16, [1, 0]),
        (TOGETHER, torch.bfloat16, 1, 2, 8, [0, 0]),  # a tensor rank's slice: one key head for all its value heads
        (APART, torch.bfloat16, 1, 2, 8, [0, 0]),
    ],
)
def test_it_agrees_with_the_specification(
    device: torch.device, dtype: torch.dtype, key_heads: int, heads: int, dim: int, starts: list[int], tile: Tile
) -> None:
    layer, length = make_layer(device, dtype, key_heads, heads, dim), 2 * STATE_PERIOD + 1
    tokens = normal(device, dtype, length, len(starts), layer.channels + heads * (dim + 2))
    slots = [4, 1][: len(starts)]
    outputs, state = run(layer, tokens, slots, starts, tile)
    for row, start in enumerate(starts):
        expected, _ = specification(layer, tokens[start:, row])
        assert_near(outputs[start:, row], expected)
        stop = start + (length - start) // STATE_PERIOD * STATE_PERIOD
        _, written = specification(layer, tokens[start:stop, row])
        assert_near(state[row], written, TOLERANCE[torch.float32])


@BOTH
def test_a_row_does_not_depend_on_its_neighbours(device: torch.device, tile: Tile) -> None:
    layer = make_layer(device, torch.float32, 1, 2, 16)
    tokens = normal(device, torch.float32, STATE_PERIOD + 1, 3, layer.channels + 2 * 18)
    together, _ = run(layer, tokens, [5, 0, 3], [0, 0, 0], tile)
    alone, _ = run(layer, tokens[:, 1:2].contiguous(), [1], [0], tile)
    assert torch.equal(together[:, 1:2], alone)


@BOTH
@pytest.mark.parametrize("position", [1, 7, 60])
def test_a_step_behind_a_state_that_holds_all_positions(device: torch.device, position: int, tile: Tile) -> None:
    """A prompt that ends anywhere leaves a whole state and zeros as pending updates; what is behind them is NaN."""
    layer, heads = make_layer(device, torch.float32, 1, 2, 16), 2
    tokens = normal(device, torch.float32, position + 9, 1, layer.channels + heads * 18)
    expected, _ = specification(layer, tokens[:, 0])
    _, before = specification(layer, tokens[:position, 0])
    state, ring = before.float()[None].contiguous(), nan(device, torch.float32, 1, TAPS, layer.channels)
    for past in range(max(0, position - TAPS), position):
        ring[0, past % TAPS] = tokens[past, 0, : layer.channels]
    pending = nan(device, torch.float32, 1, *pending_shape(layer))
    pending[0, : position % STATE_PERIOD] = 0
    for at in range(position, position + 9):
        index = [torch.tensor([value], dtype=torch.int32, device=device) for value in (0, at)]
        out = nan(device, torch.float32, 1, heads, 16)
        constants = layer.taps, layer.decay_rate, layer.dt_bias
        delta_step(tokens[at], ring, *constants, state, pending, *index, out, tile, INPUTS)
        assert_near(out[0], expected[at])


@BOTH
@pytest.mark.parametrize("log_decay", [0.0, -100.0])
def test_decays_that_keep_all_or_nothing(device: torch.device, log_decay: float, tile: Tile) -> None:
    """Eight of the last are exp(-800), which is 0: what one position has left is still there at the next."""
    layer = make_layer(device, torch.float32, 1, 2, 16)
    layer.decay_rate[:], layer.dt_bias[:] = log_decay / torch.log(torch.tensor(2.0)), 0
    tokens = normal(device, torch.float32, STATE_PERIOD + 2, 1, layer.channels + 2 * 18)
    tokens[..., -2:] = 0  # softplus(0) = log 2
    outputs, _ = run(layer, tokens, [0], [0], tile)
    assert_near(outputs[:, 0], specification(layer, tokens[:, 0])[0])
