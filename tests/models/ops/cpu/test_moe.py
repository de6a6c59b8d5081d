"""Routing and experts against a loop over tokens and experts in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from splitrank.models.ops import reference
from splitrank.models.ops.cpu.moe import route, routed_experts

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


def swiglu_experts(gate_up: torch.Tensor, down: torch.Tensor) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """gate_up [E, 2I, H], down [E, H, I] as one function an expert."""

    def expert(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down)

    return [partial(expert, gate_up=one, down=other) for one, other in zip(gate_up, down, strict=True)]


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("num_tokens", [1, 2, 13])
@pytest.mark.parametrize("inner", [1, 6, 9])
def test_routed_experts(num_tokens: int, top_k: int, inner: int) -> None:
    x, gate_up, down = random(num_tokens, 12, seed=1), random(5, 2 * inner, 12, seed=2), random(5, 12, inner, seed=3)
    chosen, weights = route(random(num_tokens, 5, seed=4), top_k, torch.float32)
    expected = reference.routed_experts(x.double(), chosen, weights.double(), gate_up.double(), down.double())
    found = routed_experts(x, chosen, weights, swiglu_experts(gate_up, down))
    assert float((found.double() - expected).abs().max() / expected.abs().max()) <= BOUND


def test_all_tokens_to_one_expert() -> None:
    x, gate_up, down = random(6, 4, seed=1), random(3, 4, 4, seed=2), random(3, 4, 2, seed=3)
    chosen, weights = torch.full((6, 1), 2), torch.ones(6, 1)
    expected = reference.routed_experts(x.double(), chosen, weights.double(), gate_up.double(), down.double())
    found = routed_experts(x, chosen, weights, swiglu_experts(gate_up, down))
    torch.testing.assert_close(found.double(), expected, atol=BOUND, rtol=BOUND)


def test_an_expert_is_called_once_with_all_its_tokens_or_not_at_all() -> None:
    x, calls = torch.arange(5.0)[:, None], []

    def expert(number: int, rows: torch.Tensor) -> torch.Tensor:
        calls.append((number, rows.flatten().tolist()))
        return rows

    chosen = torch.tensor([[2, 0], [0, 2], [3, 2], [2, 3], [0, 3]])
    found = routed_experts(x, chosen, torch.full((5, 2), 0.5), [partial(expert, number) for number in range(4)])
    assert calls == [(0, [0, 1, 4]), (2, [0, 1, 2, 3]), (3, [2, 3, 4])]
    assert torch.equal(found, x)


def test_the_inner_width_split_over_ranks_sums_to_the_whole() -> None:
    x, gate_up, down = random(5, 8, seed=1), random(4, 2 * 6, 8, seed=2), random(4, 8, 6, seed=3)
    chosen, weights = route(random(5, 4, seed=4), 2, torch.float32)
    gate, up = gate_up.chunk(2, dim=1)

    def share(part: slice) -> torch.Tensor:
        experts = swiglu_experts(torch.cat((gate[:, part], up[:, part]), dim=1), down[..., part].contiguous())
        return routed_experts(x, chosen, weights, experts)

    whole = routed_experts(x, chosen, weights, swiglu_experts(gate_up, down))
    torch.testing.assert_close(sum(map(share, (slice(0, 2), slice(2, 4), slice(4, 6)))), whole, atol=BOUND, rtol=BOUND)
