"""Every decode kernel at the widths of Qwen3.5-35B-A3B and the tiles of this GPU's table, against torch in float64."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from scripts.decode_chain import EPS, Shape, State, Step, Weights
from splitrank.models.layer_shapes import STATE_PERIOD
from splitrank.models.ops.gpu import attention_decode, head, norm, projection
from splitrank.models.ops.gpu.attention_decode import split_memory
from splitrank.models.ops.gpu.delta_step import delta_step
from splitrank.models.ops.gpu.experts import experts_down, experts_up
from splitrank.models.ops.gpu.experts_one import experts_down_one, experts_up_one
from splitrank.models.ops.gpu.routing import empty_routing, route
from splitrank.models.ops.gpu.tiles import Tile, TileTable, load_tiles
from tests.gpu import decode_references as expected
from tests.models.ops.gpu.test_sampling import KINDS
from tests.models.ops.gpu.test_sampling import check as check_samples

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

ROWS = (1, 3, 8, 16, 32, 64, 128, 256)
SHAPE = Shape(num_layers=4)
BF16 = torch.bfloat16
PROJECTIONS = {
    "in_proj": (SHAPE.in_rows, SHAPE.hidden),
    "qkv_proj": (SHAPE.qkv_rows, SHAPE.hidden),
    "out_proj": (SHAPE.hidden, SHAPE.value_heads * SHAPE.value_dim),
    "o_proj": (SHAPE.hidden, SHAPE.heads * SHAPE.head_dim),
    "router": (SHAPE.router_rows, SHAPE.hidden),
    "head": (SHAPE.vocabulary, SHAPE.hidden),
}


@pytest.fixture(scope="module")
def table() -> TileTable:
    if not torch.cuda.is_available():
        pytest.skip("needs 1 GPU, this machine has 0")
    return load_tiles(torch.cuda.get_device_name())


@pytest.fixture(scope="module")
def weights(table: TileTable) -> Iterator[Weights]:
    torch.manual_seed(0)
    yield Weights(SHAPE, torch.device("cuda"), BF16, 1)
    torch.cuda.empty_cache()


def normal(*shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * scale).to(dtype)


def nan(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device="cuda")


def check(found: torch.Tensor, wanted: torch.Tensor, limit: float = 4e-3) -> None:
    """Relative (Euclidean): bf16 rounds a result by 2^-9 at most, on average by a third of that. NaN never passes."""
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    assert error <= limit, f"relative error {error:.2e}, limit {limit:.0e}"


def some_state(rows: int, contexts: list[int]) -> State:
    """Slots out of order, one more than there are rows, pages shuffled; what belongs to nobody is NaN."""
    state = State(SHAPE, rows + 1, max(contexts), 32, torch.device("cuda"), BF16)
    state.positions[:rows] = torch.tensor(contexts, dtype=torch.int32)
    state.slots = torch.arange(rows, -1, -1, dtype=torch.int32, device="cuda")[:rows].contiguous()
    state.tables = state.tables.flatten()[torch.randperm(state.tables.numel(), device="cuda")].view_as(state.tables)
    for tensors in (state.rings, state.states, state.pendings):
        tensors[0][0] = torch.nan
    for row, context in enumerate(contexts):
        flat = state.tables[row].long().repeat_interleave(32) * 32 + torch.arange(32, device="cuda").repeat(
            state.tables.shape[1]
        )
        for tensors in (state.keys, state.values):
            tensors[0].view(-1, SHAPE.kv_heads, SHAPE.head_dim)[flat[context:]] = torch.nan
    return state


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections(table: TileTable, name: str, rows: int) -> None:
    columns, width = PROJECTIONS[name]
    x, weight, out = normal(rows, width), normal(columns, width, scale=0.02), nan(rows, columns)
    projection.project(x, weight, out, table.tile(name, rows))
    check(out, expected.product(x, weight))


@pytest.mark.parametrize("name", ["in_proj", "qkv_proj", "router"])
def test_norms_in_the_prologue(table: TileTable, name: str) -> None:
    columns, width = PROJECTIONS[name]
    residual, parts, norm_weight = normal(1, width), normal(1, 1, width), normal(width, scale=0.1)
    weight, out = normal(columns, width, scale=0.02), nan(1, columns)
    residual_out, normed = nan(1, width), nan(1, width)
    tile = table.tile(name, 1)
    projection.add_norm_project(residual, parts, norm_weight, weight, out, residual_out, normed, EPS, tile)
    assert torch.equal(residual_out, residual + parts[:, 0])
    wanted = expected.rms(residual_out, 1 + norm_weight.double())
    check(normed, wanted)
    check(out, expected.product(wanted, weight))


@pytest.mark.parametrize("rows", ROWS)
def test_norms(table: TileTable, rows: int) -> None:
    residual, parts, weight = normal(rows, 2048), normal(rows, 9, 2048), normal(2048, scale=0.1)
    residual_out, normed = nan(rows, 2048), nan(rows, 2048)
    norm.add_norm(residual, parts, weight, residual_out, normed, EPS, table.tile("add_norm", rows))
    check(residual_out, residual.double() + parts.double().sum(1))
    check(normed, expected.rms(residual_out, 1 + weight.double()))
    x, z, scale = normal(rows, 32, 128), normal(rows, 4096), normal(128, dtype=torch.float32)
    out = nan(rows, 32, 128)
    norm.gated_norm(x, z, scale, out, EPS, table.tile("gated_norm", rows))
    gate = torch.nn.functional.silu(z.double()).view(x.shape)
    check(out, expected.rms(x, scale) * gate)
    weight, projected = normal(2048, 4096, scale=0.02), nan(1, 2048)
    tile = table.tile("out_proj", 1)
    projection.gated_norm_project(x[:1], z[:1], scale, weight, projected, EPS, tile)
    check(projected, expected.product((expected.rms(x, scale) * gate)[:1].flatten(1), weight))


@pytest.mark.parametrize("form", ["together", "apart"])
@pytest.mark.parametrize("rows", ROWS)
def test_delta_step(table: TileTable, weights: Weights, rows: int, form: str) -> None:
    tile = replace(table.tile("delta_step", 1 if form == "together" else 256), form=form)
    state, projected = some_state(rows, [1 + (7 * row) % 100 for row in range(rows)]), normal(rows, SHAPE.in_rows)
    mixed, fresh, ring = expected.delta_step(SHAPE, weights, projected, state, 0)
    slots, ages = state.slots.long(), state.positions[:rows] % STATE_PERIOD
    writes, before = ages == STATE_PERIOD - 1, state.states[0][slots]
    out = nan(rows, SHAPE.value_heads, SHAPE.value_dim)
    constants = weights.taps, weights.decay_rate, weights.dt_bias
    where = state.states[0], state.pendings[0], state.slots, state.positions[:rows]
    delta_step(projected, state.rings[0], *constants, *where, out, tile, table.tile("delta_inputs", rows))
    check(out, mixed)
    assert torch.equal(state.states[0][slots[~writes]], before[~writes])
    counts = torch.where(writes, 0, ages + 1)
    check(expected.whole_states(SHAPE, state, 0, slots, counts), fresh, 2e-6)
    assert torch.equal(state.rings[0][slots].double(), ring)
    assert all(memory[0][0].isnan().all() for memory in (state.states, state.pendings, state.rings))


@pytest.mark.parametrize("rows", ROWS)
def test_attention_decode(table: TileTable, weights: Weights, rows: int) -> None:
    """Contexts around every border; pages beyond a context are NaN."""
    contexts = ([0, 1, 63, 64, 65, 300, 2047, 2500] * rows)[:rows] if rows > 1 else [700]
    state, qkv = some_state(rows, contexts), normal(rows, SHAPE.qkv_rows)
    rotations = normal(rows, SHAPE.rotary_dim)
    wanted = expected.attention(SHAPE, weights, qkv, rotations, state, 0)
    found = []
    for tile in (table.tile("attention_decode", rows), _alone(table, rows), replace(_alone(table, rows), form="apart")):
        memory = split_memory(rows, SHAPE.heads, SHAPE.kv_heads, SHAPE.head_dim, torch.device("cuda"))
        out = nan(rows, SHAPE.heads, SHAPE.head_dim)
        pages = state.keys[0].clone(), state.values[0].clone(), state.tables[:rows]
        arguments = qkv, weights.q_norm, weights.k_norm, rotations, *pages, state.positions[:rows], memory, out, EPS
        attention_decode.attention_decode(*arguments, tile)
        assert not memory.counters.any()
        found.append(out)
    check(found[0], wanted, 6e-3)
    assert torch.equal(found[0], found[1])  # however many programs share a row
    assert torch.equal(found[0], found[2])


def _alone(table: TileTable, rows: int) -> Tile:
    """One program a row, or four where the table has one."""
    tile = table.tile("attention_decode", rows)
    parts = 4 if tile["parts"] == 1 else 1
    return replace(tile, sizes=type(tile.sizes)({**tile.sizes, "parts": parts}))


@pytest.fixture(scope="module")
def mixture(weights: Weights, table: TileTable) -> Callable[..., torch.Tensor]:
    def run(logits: torch.Tensor, x: torch.Tensor, live: int) -> torch.Tensor:
        rows, parts = x.shape[0], SHAPE.top_k + 1
        block_t = table.tile("route", rows)["t"]
        routing = empty_routing(rows, SHAPE.experts, SHAPE.top_k, block_t, x.device)
        act, out = nan(rows * parts, 512), nan(rows, parts, 2048)
        up = logits, x, weights.gate_up[0], SHAPE.shared, routing, act, table.tile("experts_up", rows)
        down = act, weights.down[0], weights.shared_down[0], routing
        if table.tile("experts_up", rows).form == "fma":
            experts_up_one(*up)
            experts_down_one(*down, out[:, 0], table.tile("experts_down", rows))
            return out[:, :1]
        num_live = torch.tensor([live], dtype=torch.int32, device="cuda")
        route(logits, num_live, SHAPE.experts, routing, table.tile("route", rows))
        experts_up(*up, block_t)
        experts_down(*down, out, table.tile("experts_down", rows), block_t)
        return out

    return run


def router_logits(rows: int) -> torch.Tensor:
    """Without ties in a row, whose order ``topk`` leaves open: a permutation of 257 different numbers, and noise."""
    order = torch.stack([torch.randperm(SHAPE.experts, device="cuda") for _ in range(rows)])
    logits = normal(rows, SHAPE.router_rows)
    logits[:, : SHAPE.experts] = (order / 32 - 4).to(BF16)
    return logits


@pytest.mark.parametrize("rows", ROWS)
def test_experts(weights: Weights, mixture: Callable[..., torch.Tensor], rows: int) -> None:
    logits, x = router_logits(rows), normal(rows, 2048)
    out = mixture(logits, x, rows)
    shared = weights.shared_down[0]
    wanted = expected.experts(SHAPE, logits, x, weights.gate_up[0], weights.down[0], shared)
    check(out.double().sum(1), wanted, 6e-3)


@pytest.mark.parametrize("rows", [rows for rows in ROWS if rows > 1])
def test_a_tokens_experts_do_not_depend_on_its_neighbours(mixture: Callable[..., torch.Tensor], rows: int) -> None:
    logits, x = router_logits(rows), normal(rows, 2048)
    out = mixture(logits, x, rows)
    others, y = router_logits(rows), normal(rows, 2048)
    others[0], y[0] = logits[rows - 1], x[rows - 1]
    assert torch.equal(mixture(others, y, 1)[0], out[rows - 1])  # all others are padding
    assert torch.equal(mixture(others, y, rows)[0], out[rows - 1])


@pytest.mark.parametrize("rows", ROWS)
def test_head_argmax(table: TileTable, weights: Weights, rows: int) -> None:
    tile, x, logits = table.tile("head", rows), normal(rows, 2048), nan(rows, SHAPE.vocabulary)
    projection.project(x, weights.head, logits, tile)
    blocks = head.argmax_blocks(SHAPE.vocabulary, tile)
    best, values = nan(rows, blocks, dtype=torch.float32), nan(rows, dtype=torch.float32)
    best_at, tokens = torch.full_like(best, -1, dtype=torch.int32), torch.full_like(values, -1, dtype=torch.int32)
    head.head_argmax(x, weights.head, 0, best, best_at, values, tokens, tile)
    largest = logits.float().max(-1).values
    assert torch.equal(values, largest)
    first = (logits.float() == largest[:, None]).int().argmax(-1)
    assert torch.equal(tokens.long(), first)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_sampling_from_the_whole_vocabulary(scale: float) -> None:
    logits = normal(2 * len(KINDS), SHAPE.vocabulary, scale=scale)
    check_samples(logits, KINDS * 2)


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_the_step_gives_the_same_bits_with_early_starts_in_a_graph_and_again(
    table: TileTable, weights: Weights, rows: int
) -> None:
    """Three steps: launches one after the other, then as a graph with programmatic dependent launches, twice."""
    torch.manual_seed(1)
    state = State(SHAPE, rows, 200, 64, torch.device("cuda"), BF16)
    kept = [t.clone() for t in (*state.rings, *state.states, *state.keys, *state.values)]
    plain = {name: tuple((up, replace(tile, pdl=False)) for up, tile in rows) for name, rows in table.ranges.items()}
    seen = []
    for tiles in (replace(table, ranges=type(table.ranges)(plain)), table, table):
        for tensor, value in zip((*state.rings, *state.states, *state.keys, *state.values), kept, strict=True):
            tensor.copy_(value)
        step = Step(SHAPE, weights, state, rows, tiles)
        step()  # compiles, and starts from the tokens that it gives
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        seen.append([t.clone() for t in (step.tokens, step.values, step.normed, *state.states, *state.keys)])
    assert seen[0][1].isfinite().all()
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))
