"""Head and embedding: ties, vocabulary slices, rows of NaN, tokens that the device has kept."""

import pytest
import torch

from splitrank.models.ops.gpu.embedding import embed
from splitrank.models.ops.gpu.head import argmax_blocks, head_argmax
from splitrank.models.ops.gpu.projection import project
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import nan, normal

FMA = Tile(num_warps=4, form="fma", sizes={"n": 4})
LIBRARY = Tile(num_warps=4, form="library", sizes={"n": 32})
DOT = Tile(num_warps=4, num_stages=2, form="dot", sizes={"n": 16, "k": 32, "t": 8})


def argmax(x: torch.Tensor, weight: torch.Tensor, tile: Tile, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rows, device = x.shape[0], x.device
    best = nan(device, torch.float32, rows, argmax_blocks(weight.shape[0], tile))
    best_at, values = torch.full_like(best, -1, dtype=torch.int32), nan(device, torch.float32, rows)
    tokens = torch.full((rows,), -1, dtype=torch.int32, device=device)
    head_argmax(x, weight, start, best, best_at, values, tokens, tile)
    return values, tokens


@pytest.mark.parametrize(
    ("dtype", "rows", "tile", "vocabulary"),
    [
        (torch.float32, 1, FMA, 33),
        (torch.bfloat16, 3, FMA, 33),
        (torch.bfloat16, 1, FMA, 256),
        (torch.float32, 1, DOT, 256),
        (torch.bfloat16, 5, DOT, 33),
        (torch.float32, 19, DOT, 33),
        (torch.bfloat16, 19, DOT, 256),
        (torch.float32, 5, LIBRARY, 256),
        (torch.bfloat16, 5, LIBRARY, 33),
    ],
)
def test_it_is_the_argmax_of_the_stored_logits(
    device: torch.device, dtype: torch.dtype, rows: int, tile: Tile, vocabulary: int
) -> None:
    """Few different values: equal logits are common in bf16, and the lowest id wins."""
    x = torch.randint(-2, 3, (rows, 40), device=device).to(dtype)
    weight = torch.randint(-1, 2, (vocabulary, 40), device=device).to(dtype)
    logits = nan(device, dtype, rows, vocabulary)
    project(x, weight, logits, tile)
    values, tokens = argmax(x, weight, tile)
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert tokens.tolist() == expected
    assert torch.equal(values, logits.float().max(-1).values)


@pytest.mark.parametrize("tile", [FMA, DOT, LIBRARY])
def test_a_slice_of_the_vocabulary_names_its_own_ids(device: torch.device, tile: Tile) -> None:
    x, weight = normal(device, torch.float32, 2, 32), normal(device, torch.float32, 50, 32)
    _, whole = argmax(x, weight, tile)
    parts = [argmax(x, weight[begin : begin + 25].contiguous(), tile, begin) for begin in (0, 25)]
    values, tokens = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    assert torch.equal(tokens.gather(0, values.argmax(0, keepdim=True))[0], whole)


@pytest.mark.parametrize("tile", [FMA, DOT, LIBRARY])
def test_a_row_of_nan_gives_an_id(device: torch.device, tile: Tile) -> None:
    x, weight = normal(device, torch.float32, 3, 32), normal(device, torch.float32, 50, 32)
    _, clean = argmax(x, weight, tile)
    x[1] = torch.nan
    values, found = argmax(x, weight, tile)
    tokens = found.tolist()
    assert 0 <= tokens[1] < 50
    assert values[1] == torch.inf
    assert [tokens[0], tokens[2]] == [clean[0], clean[2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embed(device: torch.device, dtype: torch.dtype) -> None:
    """Ids of other ranks give zeros; a negative one is what the device has kept for the slot."""
    weight = normal(device, dtype, 10, 24)  # ids 20 to 29

    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    out = nan(device, dtype, 6, 24)
    kept = integers(0, 23, 99)
    embed(integers(20, 29, 19, 30, -1, -1), integers(0, 0, 0, 0, 1, 2), kept, weight, 20, out, Tile(num_warps=2))
    assert torch.equal(out[[0, 1, 4]], weight[[0, 9, 3]])
    assert not out[[2, 3, 5]].any()
