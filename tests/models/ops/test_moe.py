"""Routing and experts against a loop over tokens and experts in float64."""

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.moe import route, routed_experts

# Two products of up to 12 terms, silu and a weighted sum, in float32.
BOUND = 5e-6


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [1, 3, 7])
def test_route(top_k: int) -> None:
    logits = random(9, 7, seed=1)
    experts, weights = route(logits, top_k, torch.float32)
    expected_experts, expected_weights = reference.route(logits.double(), top_k)
    assert experts.tolist() == expected_experts
    torch.testing.assert_close(weights.double(), expected_weights, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("num_tokens", [1, 2, 13])
@pytest.mark.parametrize("inner", [1, 6, 9])
def test_routed_experts(num_tokens: int, top_k: int, inner: int) -> None:
    x, gate_up, down = random(num_tokens, 12, seed=1), random(5, 2 * inner, 12, seed=2), random(5, 12, inner, seed=3)
    experts, weights = route(random(num_tokens, 5, seed=4), top_k, torch.float32)
    expected = reference.routed_experts(x.double(), experts, weights.double(), gate_up.double(), down.double())
    found = routed_experts(x, experts, weights, gate_up, down)
    assert float((found.double() - expected).abs().max() / expected.abs().max()) <= BOUND


def test_all_tokens_to_one_expert() -> None:
    x, gate_up, down = random(6, 4, seed=1), random(3, 4, 4, seed=2), random(3, 4, 2, seed=3)
    experts, weights = torch.full((6, 1), 2), torch.ones(6, 1)
    expected = reference.routed_experts(x.double(), experts, weights.double(), gate_up.double(), down.double())
    torch.testing.assert_close(
        routed_experts(x, experts, weights, gate_up, down).double(), expected, atol=BOUND, rtol=BOUND
    )


def test_the_inner_width_split_over_ranks_sums_to_the_whole() -> None:
    x, gate_up, down = random(5, 8, seed=1), random(4, 2 * 6, 8, seed=2), random(4, 8, 6, seed=3)
    experts, weights = route(random(5, 4, seed=4), 2, torch.float32)
    gate, up = gate_up.chunk(2, dim=1)
    shares = [
        routed_experts(
            x, experts, weights, torch.cat((gate[:, part], up[:, part]), dim=1), down[..., part].contiguous()
        )
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(shares), routed_experts(x, experts, weights, gate_up, down), atol=BOUND, rtol=BOUND)
