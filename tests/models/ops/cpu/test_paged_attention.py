"""Attention over pages against dense attention, head by head in float64."""

import pytest
import torch

from splitrank.models.cache import KVPages
from splitrank.models.ops import reference
from splitrank.models.ops.cpu.paged_attention import decode_attention, prefill_attention, write_pages
from splitrank.models.rounding import pages_needed

# Dot products of d <= 10 terms, a softmax and a mean over up to 40 values, all in float32 and of order one.
BOUND = 2e-6
PAGE, NUM_PAGES = 4, 24
HEADS = [(1, 1), (4, 4), (4, 2), (6, 1)]  # query heads, kv heads
DIRT = [1.0, torch.nan, torch.inf]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Context:
    """Keys and values of one sequence, written to scattered pages among garbage."""

    def __init__(self, state: KVPages, length: int, pages: list[int], seed: int) -> None:
        kv_heads, dim = state.keys.shape[2:]
        self.pages = torch.tensor(pages)
        self.k, self.v = random(length, kv_heads, dim, seed=seed), random(length, kv_heads, dim, seed=seed + 1)
        positions = torch.arange(length)
        write_pages(state, self.pages[positions // PAGE] * PAGE + positions % PAGE, self.k, self.v)

    def attend(self, q: torch.Tensor, start: int) -> torch.Tensor:
        return reference.attention(q.double(), self.k.double(), self.v.double(), start)


def dirty_pages(kv_heads: int, dirt: float, dim: int = 10) -> KVPages:
    """What others left behind: pages of large numbers, or of ``dirt``."""
    return KVPages(*(100 * random(NUM_PAGES, PAGE, kv_heads, dim, seed=seed) * dirt for seed in (8, 9)))


@pytest.mark.parametrize("dirt", DIRT)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 4), (0, 11), (4, 1), (8, 5), (3, 2), (21, 17)])
def test_prefill(heads: tuple[int, int], start: int, length: int, dirt: float) -> None:
    state = dirty_pages(heads[1], dirt)
    context = Context(
        state, start + length, [23, 5, 0, 17, 3, 8, 12, 2, 20, 1][: pages_needed(start + length, PAGE)], seed=1
    )
    q = random(length, heads[0], 10, seed=3)
    found = prefill_attention(q, state, start, context.pages)
    torch.testing.assert_close(found.double(), context.attend(q, start), atol=BOUND, rtol=BOUND)


@pytest.mark.parametrize("dirt", DIRT)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode_of_sequences_of_unequal_length(heads: tuple[int, int], dirt: float) -> None:
    """Page 1 fills the shorter tables and is nobody's."""
    state = dirty_pages(heads[1], dirt)
    tables = [[7], [3, 22, 9, 14], [11, 0]]
    lengths = [3, 16, 5]
    contexts = [Context(state, n, table, seed=10 * n) for n, table in zip(lengths, tables, strict=True)]
    q = random(3, heads[0], 10, seed=3)
    padded = torch.tensor([table + [1] * (4 - len(table)) for table in tables])
    found = decode_attention(q, state, padded, torch.tensor(lengths))
    for row, context in enumerate(contexts):
        expected = context.attend(q[row : row + 1], lengths[row] - 1)
        torch.testing.assert_close(found[row : row + 1].double(), expected, atol=BOUND, rtol=BOUND)


@pytest.mark.parametrize("dirt", [torch.nan, torch.inf])
def test_a_sequence_of_bad_numbers_leaves_its_neighbours_as_they_are(dirt: float) -> None:
    state = dirty_pages(2, 1.0)
    lengths, tables = torch.tensor([5, 6, 16]), torch.tensor([[1, 2, 0, 0], [3, 4, 0, 0], [5, 6, 7, 8]])
    q = random(3, 4, 10, seed=3)
    before = decode_attention(q, state, tables, lengths)
    for pages in (state.keys, state.values):
        pages[[3, 4]] = dirt
    q[1] = dirt
    after = decode_attention(q, state, tables, lengths)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert after[1].isnan().all()  # and what is wrong does not get lost


def test_writing_touches_only_the_positions_given() -> None:
    state = dirty_pages(2, 1.0)
    before = state.keys.clone()
    written = torch.tensor([5 * PAGE + 3, 0])
    write_pages(state, written, torch.zeros(2, 2, 10), torch.zeros(2, 2, 10))
    changed = (state.keys != before).flatten(2).any(-1).flatten().nonzero().flatten()
    assert changed.tolist() == sorted(written.tolist())
