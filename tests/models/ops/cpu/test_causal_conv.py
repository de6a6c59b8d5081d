"""The convolution against the explicit sum."""

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.cpu.causal_conv import conv_decode, conv_prefill

# A sum of at most 4 products in float32, and silu: a few roundings of 2^-24 each.
BOUND = 1e-6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_prefill(length: int, taps: int) -> None:
    x, state, weight = random(length, 5, seed=1), random(taps - 1, 5, seed=2), random(taps, 5, seed=3)
    expected, new_state = reference.causal_conv(x.double(), state.double(), weight.double())
    found = conv_prefill(x, state, weight)
    torch.testing.assert_close(found.double(), expected, atol=BOUND, rtol=BOUND)
    assert torch.equal(state.double(), new_state)


@pytest.mark.parametrize("taps", [2, 4])
def test_decode_updates_its_slots_and_no_other(taps: int) -> None:
    x, states, weight = random(3, 7, seed=1), random(6, taps - 1, 7, seed=2), random(taps, 7, seed=3)
    before, slots = states.clone(), torch.tensor([4, 0, 2])
    found = conv_decode(x, states, slots, weight)
    for row, slot in enumerate(slots.tolist()):
        expected, new_state = reference.causal_conv(x[row : row + 1].double(), before[slot].double(), weight.double())
        torch.testing.assert_close(found[row : row + 1].double(), expected, atol=BOUND, rtol=BOUND)
        assert torch.equal(states[slot].double(), new_state)
    for slot in (1, 3, 5):
        assert torch.equal(states[slot], before[slot])


def test_steps_and_chunks_leave_the_same_state() -> None:
    x, weight = random(8, 5, seed=1), random(4, 5, seed=3)
    by_chunk, by_step = torch.zeros(3, 5), torch.zeros(1, 3, 5)
    conv_prefill(x, by_chunk, weight)
    for token in x:
        conv_decode(token[None], by_step, torch.tensor([0]), weight)
    assert torch.equal(by_chunk, by_step[0])
