"""Paged decode attention against dense attention: contexts of every kind, scattered pages, poisoned unwritten memory,
the slices of tensor ranks, and the same bits however many programs share a row."""

from dataclasses import dataclass

import pytest
import torch

from splitrank.models.layers.rotary import RotaryEmbedding
from splitrank.models.ops import reference
from splitrank.models.ops.cpu.rotary import rotate
from splitrank.models.ops.gpu.attention_decode import attention_decode, split_memory
from splitrank.models.ops.gpu.rotary import cos_sin
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import pages_needed
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

ROTARY, THETA = RotaryEmbedding(8, 1e7, None, torch.device("cpu")), 1e7


def tile(form: str = "counted", parts: int = 1, t: int = 64) -> Tile:
    return Tile(num_warps=4, form=form, sizes={"t": t, "parts": parts})


def streamed(t: int = 32, stages: int = 3) -> Tile:
    return Tile(num_warps=4, num_stages=stages, form="streamed", sizes={"t": t})


@dataclass
class Step:
    """One decode step of rows with these contexts. Every page belongs to one row; what is not written is NaN."""

    heads: int
    kv_heads: int
    contexts: list[int]
    projected: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tables: torch.Tensor

    def cached(self, pages: torch.Tensor, row: int, length: int) -> torch.Tensor:
        used = self.tables[row, : pages_needed(length, pages.shape[1])].long()
        return pages[used].flatten(0, 1)[:length]

    def run(self, how: Tile) -> torch.Tensor:
        """Writes copies of the pages, which replace the step's."""
        device, dtype, dim = self.keys.device, self.keys.dtype, self.keys.shape[-1]
        self.keys, self.values = self.keys.clone(), self.values.clone()
        positions = torch.tensor(self.contexts, dtype=torch.int32, device=device)
        rotations = nan(device, dtype, len(self.contexts), 8)
        cos_sin(positions, ROTARY.inverse_frequencies.to(device), 1.0, rotations, Tile(num_warps=1))
        memory = split_memory(len(self.contexts), self.heads, self.kv_heads, dim, device)
        memory.partials.fill_(torch.nan)
        out = nan(device, dtype, len(self.contexts), self.heads, dim)
        pages = self.keys, self.values, self.tables
        weights = self.q_weight, self.k_weight
        attention_decode(self.projected, *weights, rotations, *pages, positions, memory, out, 1e-6, how)
        assert not memory.counters.any()
        return out


def make_step(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    contexts: list[int],
    dim: int = 16,
    page: int = 16,
) -> Step:
    longest = max(contexts) // page + 1
    order = torch.randperm(len(contexts) * longest + 3)  # pages of a row are scattered, and some belong to nobody
    tables = order[: len(contexts) * longest].view(len(contexts), longest).int()
    keys, values = (nan(device, dtype, len(order), page, kv_heads, dim) for _ in range(2))
    for row, context in enumerate(contexts):
        flat = tables[row].long().repeat_interleave(page)[:context] * page + torch.arange(context) % page
        for pages in (keys, values):
            pages.view(-1, kv_heads, dim)[flat.to(device)] = normal(device, dtype, context, kv_heads, dim)
        tables[row, context // page + 1 :] = 2**30  # no page: must not be read
    projected = normal(device, dtype, len(contexts), (2 * heads + 2 * kv_heads) * dim)
    weights = [normal(device, dtype, dim, scale=0.2) for _ in range(2)]
    return Step(heads, kv_heads, contexts, projected, *weights, keys, values, tables.to(device))


def expected(step: Step, before: tuple[torch.Tensor, torch.Tensor], row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> the row's output, and its new key."""
    dim, context = step.keys.shape[-1], step.contexts[row]
    projected = step.projected[row].double().cpu()
    q_gate, k, v = projected.split([2 * step.heads * dim, step.kv_heads * dim, step.kv_heads * dim])
    q, gate = q_gate.view(step.heads, 2 * dim).chunk(2, -1)
    rotation = ROTARY(torch.tensor([context]), torch.float64)

    def turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rotate(reference.rms_norm(x, 1 + weight.double().cpu(), 1e-6)[None], *rotation)

    new = turned(k.view(step.kv_heads, dim), step.k_weight)
    keys, values = (step.cached(pages, row, context).double().cpu() for pages in before)
    keys, values = torch.cat((keys, new)), torch.cat((values, v.view(1, step.kv_heads, dim)))
    mixed = reference.attention(turned(q, step.q_weight), keys, values, context)[0]
    return mixed * torch.sigmoid(gate), new[0]


def check(step: Step, how: Tile, tolerance: float | None = None) -> torch.Tensor:
    before = step.keys, step.values
    out = step.run(how)
    dim = step.keys.shape[-1]
    for row, context in enumerate(step.contexts):
        wanted, new_key = expected(step, before, row)
        assert_near(out[row], wanted, tolerance)
        assert_near(step.cached(step.keys, row, context + 1)[-1], new_key, tolerance)
        new_value = step.projected[row, -step.kv_heads * dim :].view(step.kv_heads, dim)
        assert torch.equal(step.cached(step.values, row, context + 1)[-1], new_value)
    written = step.keys.isnan().sum() - before[0].isnan().sum()
    assert written == -len(step.contexts) * step.kv_heads * dim  # and nothing else
    return out


CONTEXTS = [0, 1, 15, 16, 63, 64, 65, 130]


@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "contexts"),
    [
        (torch.float32, 4, 2, CONTEXTS),
        (torch.bfloat16, 4, 2, CONTEXTS),
        (torch.float32, 8, 1, [0, 65]),  # slices of tensor ranks
        (torch.bfloat16, 2, 1, [0, 65]),
        (torch.bfloat16, 6, 2, [16, 65]),  # three query heads a kv head
    ],
)
def test_it_agrees_with_dense_attention(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, contexts: list[int]
) -> None:
    step = make_step(device, dtype, heads, kv_heads, contexts)
    check(step, tile(), 2 * TOLERANCE[dtype])  # bf16: keys and weights of the sum are rounded besides


@pytest.mark.parametrize("page", [16, 32, 64])
def test_pages_of_other_sizes(device: torch.device, page: int) -> None:
    check(make_step(device, torch.float32, 4, 2, [0, page - 1, page, 100], page=page), tile(parts=2))


def test_programs_that_share_a_row_change_no_bit(device: torch.device) -> None:
    step = make_step(device, torch.bfloat16, 4, 2, [0, 7, 64, 65, 129, 300])
    alone = step.run(tile())
    for how in (tile("counted", 4), tile("counted", 32), tile("apart", 2), tile("apart", 4), streamed(64, 2)):
        assert torch.equal(step.run(how), alone), how


def test_a_long_context_has_longer_splits(device: torch.device) -> None:
    """From 2,049 tokens on; 5,000 are 20 splits of 256."""
    check(make_step(device, torch.float32, 2, 1, [2048, 2049, 5000], page=64), tile("counted", 8), 5e-6)


@pytest.mark.parametrize(
    ("t", "stages", "contexts"),
    [
        (16, 4, [0, 1, 15, 16, 65, 127, 300]),
        (32, 3, [31, 32, 63, 64, 128, 2048]),
        (64, 2, [0, 63, 64, 65, 300, 2049]),
    ],
)
def test_one_program_streams_all_splits(device: torch.device, t: int, stages: int, contexts: list[int]) -> None:
    """With the bits of blocks of the same length that are asked for one by one; 2,049 tokens are splits of 128."""
    step = make_step(device, torch.bfloat16, 4, 2, contexts)
    assert torch.equal(check(step, streamed(t, stages), 2 * TOLERANCE[torch.bfloat16]), step.run(tile(t=t)))


def test_smaller_blocks_of_tokens(device: torch.device) -> None:
    check(make_step(device, torch.float32, 4, 2, [0, 31, 32, 33, 100]), tile("counted", 2, t=32))


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    step = make_step(device, torch.float32, 4, 2, [70, 3, 200])
    together = step.run(tile("counted", 2))
    part = Step(
        4,
        2,
        [3],
        step.projected[1:2].contiguous(),
        step.q_weight,
        step.k_weight,
        step.keys,
        step.values,
        step.tables[1:2],
    )
    assert torch.equal(part.run(tile("counted", 2)), together[1:2])


def test_cosines_and_sines(device: torch.device) -> None:
    positions = torch.tensor([0, 1, 77, 262_143], dtype=torch.int32, device=device)
    out = nan(device, torch.float32, 4, 8)
    cos_sin(positions, ROTARY.inverse_frequencies.to(device), 1.0, out, Tile(num_warps=1))
    cos, sin = ROTARY(positions.long().cpu(), torch.float32)
    torch.testing.assert_close(out.cpu(), torch.cat((cos[:, 0, :4], sin[:, 0, :4]), -1), rtol=0, atol=2e-6)
