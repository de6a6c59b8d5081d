"""The chain of a whole step: the forms for one row and those for many compute the same, and slices of ranks fit."""

from types import MappingProxyType

import pytest
import torch

from scripts.decode_chain import Shape, State, Step, Weights
from splitrank.models.ops.gpu.launch import noted_launches
from splitrank.models.ops.gpu.tiles import Tile, TileTable, load_tiles
from tests.models.ops.gpu.comparison import assert_near

TINY = Shape(
    hidden=64,
    num_layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    rotary_dim=8,
    key_heads=2,
    value_heads=4,
    key_dim=16,
    value_dim=16,
    experts=8,
    top_k=2,
    inner=24,
    shared=40,
    vocabulary=100,
)
OTHER = {
    "add_norm": Tile(4),
    "gated_norm": Tile(4, sizes=MappingProxyType({"heads": 4})),
    "delta_inputs": Tile(1),
    "delta_step": Tile(1, form="apart", sizes=MappingProxyType({"v": 8})),
    "attention_decode": Tile(4, form="counted", sizes=MappingProxyType({"t": 32, "parts": 2})),
    "route": Tile(4, form="together", sizes=MappingProxyType({"t": 8})),
}
PROJECTIONS = ("in_proj", "qkv_proj", "out_proj", "o_proj", "router", "head", "experts_up", "experts_down")


def table(form: str, **sizes: int) -> TileTable:
    tiles = OTHER | {name: Tile(4, form=form, sizes=MappingProxyType(sizes)) for name in PROJECTIONS}
    return TileTable("test", "", MappingProxyType({name: ((8, tile),) for name, tile in tiles.items()}))


def run(tiles: TileTable, rows: int) -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
    """The last normed rows, all states, and the tokens, of weights and states that a seed makes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    weights = Weights(TINY, device, torch.float32, TINY.num_layers)
    for tensors in (weights.first, weights.second, weights.router, weights.gate_up, weights.down, weights.shared_down):
        for tensor in tensors:
            tensor.mul_(5)  # so that every layer matters
    state = State(TINY, 3, 70, 16, device, torch.float32)
    step = Step(TINY, weights, state, rows, tiles)
    step()
    kept = [tensor[:rows] for tensor in (*state.states, *state.rings)]
    return step.normed, kept, step.tokens.tolist()


def test_the_forms_of_one_row_and_of_many_agree() -> None:
    many = table("dot", n=16, k=32, t=16, chunk=32)
    one_row, one_states, one_token = run(table("fma", n=4), 1)
    alone, states, token = run(many, 1)
    assert_near(alone, one_row, 1e-5)
    for found, expected in zip(states, one_states, strict=True):
        assert_near(found, expected, 1e-5)
    assert token == one_token
    together, _, tokens = run(many, 3)
    assert_near(together[:1], one_row, 1e-5)
    assert tokens[0] == one_token[0]


@pytest.mark.parametrize("gpu", ["NVIDIA H200", "NVIDIA H100", "AMD Instinct MI300X"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_tensor_ranks_slice_passes_every_border(gpu: str, tp: int) -> None:
    """The real widths, on the device meta: shapes, dtypes and strides as each launch declares them."""
    meta, shape, tiles = torch.device("meta"), Shape(num_layers=4).of_rank(tp), load_tiles(gpu)
    weights = Weights(shape, meta, torch.bfloat16, 1)
    for rows in (1, 2, 7, 16, 64, 256):
        with noted_launches() as calls:
            Step(shape, weights, State(shape, rows, 300, 64, meta, torch.bfloat16), rows, tiles)()
        assert len(calls) >= 25
