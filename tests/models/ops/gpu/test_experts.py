"""The mixture of experts against the specification: one row and many, odd widths, a shared expert of another width,
padded rows, and sums that do not depend on neighbours."""

from dataclasses import dataclass

import pytest
import torch

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.experts import experts_down, experts_up
from splitrank.models.ops.gpu.experts_one import experts_down_one, experts_up_one
from splitrank.models.ops.gpu.packing import interleave_gate_up, pack_router
from splitrank.models.ops.gpu.routing import empty_routing, route
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

FMA = Tile(num_warps=4, form="fma", sizes={"n": 4})
UP = Tile(num_warps=4, num_stages=2, form="dot", sizes={"n": 16, "k": 32})
DOWN = Tile(num_warps=4, num_stages=2, form="dot", sizes={"n": 16, "chunk": 32})
IN_BLOCKS = Tile(num_warps=4, num_stages=2, form="blocks", sizes={"n": 16, "k": 16, "chunk": 32})


@dataclass(frozen=True)
class Weights:
    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    shared_gate_up: torch.Tensor
    shared_down: torch.Tensor


def random_weights(
    device: torch.device, dtype: torch.dtype, experts: int, hidden: int, inner: int, shared: int
) -> Weights:
    def weight(*shape: int) -> torch.Tensor:
        return normal(device, dtype, *shape, scale=shape[-1] ** -0.5)

    return Weights(
        weight(experts + 1, hidden),
        weight(experts, 2 * inner, hidden),
        weight(experts, hidden, inner),
        weight(2 * shared, hidden),
        weight(hidden, shared),
    )


def expected(logits: torch.Tensor, x: torch.Tensor, weights: Weights, top_k: int) -> torch.Tensor:
    """The kernel's own logits decide, else a rounding could choose other experts."""
    experts, shared = weights.down.shape[0], weights.shared_down.shape[1]
    logits, x = logits.double().cpu(), x.double().cpu()
    chosen, shares = reference.route(logits[:, :experts], top_k)
    gate_up, down = weights.gate_up.double().cpu(), weights.down.double().cpu()
    routed = reference.routed_experts(x, torch.tensor(chosen), shares, gate_up, down)
    gate, up = logits[:, experts + 1 : experts + 1 + 2 * shared].split(shared, -1)
    inner = reference.silu(gate) * up * torch.sigmoid(logits[:, experts, None])
    return routed + inner @ weights.shared_down.double().cpu().t()


def run(
    logits: torch.Tensor,
    x: torch.Tensor,
    weights: Weights,
    top_k: int,
    live: int,
    block_t: int,
    down: Tile = DOWN,
) -> torch.Tensor:
    """-> [T, k + 1, H]; padded rows stay NaN."""
    (rows, hidden), (experts, _, inner), shared = x.shape, weights.down.shape, weights.shared_down.shape[1]
    routing, tile = (
        empty_routing(rows, experts, top_k, block_t, x.device),
        Tile(4, form="together", sizes={"t": block_t}),
    )
    route(logits, torch.tensor([live], dtype=torch.int32, device=x.device), experts, routing, tile)
    act = nan(x.device, x.dtype, rows * (top_k + 1), max(inner, shared))
    out = nan(x.device, x.dtype, rows, top_k + 1, hidden)
    gate_up = interleave_gate_up(weights.gate_up)
    experts_up(logits, x, gate_up, shared, routing, act, UP, block_t)
    experts_down(act, weights.down, weights.shared_down, routing, out, down, block_t)
    return out


def make_logits(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    return x @ pack_router(weights.router, weights.shared_gate_up).t()


SHAPES = [(8, 2, 64, 32, 32), (6, 4, 72, 24, 40), (16, 8, 40, 16, 8)]  # experts, top k, hidden, inner, shared inner


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_row(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    experts, top_k, hidden, inner, shared = shape
    weights, x = random_weights(device, dtype, experts, hidden, inner, shared), normal(device, dtype, 1, hidden)
    logits, routing = make_logits(x, weights), empty_routing(1, experts, top_k, 8, device)
    act, out = nan(device, dtype, top_k + 1, max(inner, shared)), nan(device, dtype, 1, hidden)
    experts_up_one(logits, x, interleave_gate_up(weights.gate_up), shared, routing, act, FMA)
    experts_down_one(act, weights.down, weights.shared_down, routing, out, FMA)
    assert_near(out, expected(logits, x, weights, top_k))


@pytest.mark.parametrize(
    ("dtype", "shape", "rows", "block_t"),
    [
        (torch.float32, SHAPES[0], 1, 8),
        (torch.bfloat16, SHAPES[0], 19, 8),
        (torch.float32, SHAPES[1], 19, 8),
        (torch.bfloat16, SHAPES[1], 16, 16),
        (torch.float32, SHAPES[2], 16, 16),
        (torch.bfloat16, SHAPES[2], 5, 8),
    ],
)
def test_rows(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], rows: int, block_t: int) -> None:
    experts, top_k, hidden, inner, shared = shape
    weights, x = random_weights(device, dtype, experts, hidden, inner, shared), normal(device, dtype, rows, hidden)
    logits = make_logits(x, weights)
    out = run(logits, x, weights, top_k, rows, block_t)
    assert_near(out.double().sum(1), expected(logits, x, weights, top_k), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_read_in_blocks(device: torch.device, shape: tuple[int, ...]) -> None:
    experts, top_k, hidden, inner, shared = shape
    weights, x = (
        random_weights(device, torch.float32, experts, hidden, inner, shared),
        normal(device, torch.float32, 5, hidden),
    )
    logits = make_logits(x, weights)
    out = run(logits, x, weights, top_k, 5, 8, IN_BLOCKS)
    assert_near(out.sum(1), expected(logits, x, weights, top_k))


def test_padded_rows_are_not_computed(device: torch.device) -> None:
    weights, x = random_weights(device, torch.float32, 8, 64, 32, 32), normal(device, torch.float32, 7, 64)
    x[4:] = torch.nan
    logits = make_logits(x, weights)
    out = run(logits, x, weights, 2, 4, 8)
    assert out[4:].isnan().all()
    assert_near(out[:4].sum(1), expected(logits[:4], x[:4], weights, 2))


def test_a_tokens_bits_do_not_depend_on_its_neighbours(device: torch.device) -> None:
    """Among other rows, in another place, beside fewer of them: as the width of a step stays, so do the bits."""
    dtype = torch.bfloat16
    weights, x = random_weights(device, dtype, 8, 64, 32, 40), normal(device, dtype, 8, 64)
    alone = run(make_logits(x, weights), x, weights, 2, 8, 8)[2]
    others = normal(device, dtype, 8, 64)
    others[6] = x[2]
    assert torch.equal(run(make_logits(others, weights), others, weights, 2, 7, 8)[6], alone)


def test_interleaved_rows() -> None:
    gate_up = torch.arange(12.0).view(2, 6, 1)
    assert interleave_gate_up(gate_up).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
