"""Both forms of the delta rule against the recurrence, token by token in float64."""

from typing import NamedTuple

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.cpu.delta_rule import BLOCK, chunked_delta_rule, delta_rule_step

# Float32 (2^-24) over up to 192 tokens: the state is a contraction, so errors of the steps add up at most linearly
# before they decay; 192 * 2^-24 = 1.1e-5, of the largest value.
BOUND = 1.2e-5
HEADS = [(1, 1), (2, 2), (1, 2), (2, 8)]  # key heads, value heads


class Inputs(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    log_decay: torch.Tensor
    beta: torch.Tensor

    def double(self) -> "Inputs":
        return Inputs(*(tensor.double() for tensor in self))


def random_inputs(length: int, key_heads: int, value_heads: int, key_dim: int = 6, value_dim: int = 5) -> Inputs:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Inputs(
        normal(length, key_heads, key_dim),
        normal(length, key_heads, key_dim),
        normal(length, value_heads, value_dim),
        -torch.rand(length, value_heads, generator=generator) * 2,
        torch.rand(length, value_heads, generator=generator),
    )


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found.double() - expected).abs().max() / expected.abs().max()) <= BOUND


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_chunked(length: int, heads: tuple[int, int]) -> None:
    inputs = random_inputs(length, *heads)
    state = torch.randn(heads[1], 6, 5, generator=torch.Generator().manual_seed(1))
    expected, new_state = reference.delta_rule(*inputs.double(), state.double())
    found = chunked_delta_rule(*inputs, state)
    assert_near(found, expected)
    assert_near(state, new_state)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_step_updates_its_slots_and_no_other(heads: tuple[int, int]) -> None:
    inputs, slots = random_inputs(3, *heads), torch.tensor([4, 0, 2])
    states = torch.randn(6, heads[1], 6, 5, generator=torch.Generator().manual_seed(1))
    before = states.clone()
    found = delta_rule_step(*inputs, states, slots)
    for row, slot in enumerate(slots.tolist()):
        one = Inputs(*(tensor[row : row + 1] for tensor in inputs.double()))
        expected, new_state = reference.delta_rule(*one, before[slot].double())
        assert_near(found[row : row + 1], expected)
        assert_near(states[slot], new_state)
    for slot in (1, 3, 5):
        assert torch.equal(states[slot], before[slot])


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -30.0])
def test_extreme_decays_stay_finite(log_decay: float) -> None:
    inputs = random_inputs(2 * BLOCK, 1, 2)._replace(log_decay=torch.full((2 * BLOCK, 2), log_decay))
    state = torch.zeros(2, 6, 5)
    expected, new_state = reference.delta_rule(*inputs.double(), state.double())
    assert_near(chunked_delta_rule(*inputs, state), expected)
    assert_near(state, new_state)


def test_chunks_that_end_at_block_borders_change_no_bits() -> None:
    inputs = random_inputs(3 * BLOCK, 2, 4)
    whole, parts = torch.zeros(4, 6, 5), torch.zeros(4, 6, 5)
    expected = chunked_delta_rule(*inputs, whole)
    pieces = [slice(0, BLOCK), slice(BLOCK, 3 * BLOCK)]
    found = [chunked_delta_rule(*(tensor[rows] for tensor in inputs), parts) for rows in pieces]
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(parts, whole)
