"""The rule over blocks of several sequences against the recurrence, token by token in float64."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from splitrank.models.layer_shapes import STATE_PERIOD, pending_shape
from splitrank.models.ops import reference
from splitrank.models.ops.gpu.delta_chunk import delta_chunk, solve_blocks
from splitrank.models.ops.gpu.launch import INTERPRETED
from splitrank.models.ops.gpu.sequences import Sequences, place
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import TOLERANCE, assert_near, nan, normal

SOLVE, WALK = Tile(num_warps=4), Tile(num_warps=4, sizes={"v": 16})
LENGTHS, STARTS, SLOTS = [65, 1, 130, 63, 64], [0, 64, 128, 64, 0], [3, 0, 2, 6, 7]
DIM = 16
# bf16: a state is rounded once a block, queries, keys, corrections and the inverse once each; of 2^-9 every time.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Rows(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    log_decay: torch.Tensor
    beta: torch.Tensor

    def of(self, rows: slice) -> "Rows":
        return Rows(*(tensor[rows] for tensor in self))

    def wide(self) -> "Rows":
        return Rows(*(tensor.double().cpu() for tensor in self))


def example(device: torch.device, dtype: torch.dtype, rows: int, key_heads: int, heads: int) -> Rows:
    q, k = (F.normalize(normal(device, torch.float32, rows, key_heads, DIM), dim=-1).to(dtype) for _ in range(2))
    gates = torch.rand(2, rows, heads, device=device)
    return Rows(q, k, normal(device, dtype, rows, heads, DIM), -gates[0], gates[1])


def run(rows: Rows, states: torch.Tensor, sequences: Sequences, walk: Tile = WALK) -> torch.Tensor:
    """Besides: what is pending behind a sequence is nothing, and what belongs to others is not touched."""
    solved = solve_blocks(rows.q, rows.k, rows.log_decay, rows.beta, sequences, SOLVE)
    shape = pending_shape(*rows.k.shape[1:], *rows.v.shape[1:])
    pending = nan(states.device, torch.float32, states.shape[0], *shape)
    out = delta_chunk(rows.q, rows.k, rows.v, solved, states, pending, sequences, walk)
    held = [0] * states.shape[0]
    ends = sequences.starts + sequences.cu_seqlens.diff()
    for slot, end in zip(sequences.slots.tolist(), ends.tolist(), strict=True):
        held[slot] = end % STATE_PERIOD
    for slot, count in enumerate(held):
        assert not pending[slot, :count].any()
        assert pending[slot, count:].isnan().all()
    return out


@pytest.mark.parametrize(
    ("dtype", "key_heads", "heads"), [(torch.float32, 1, 2), (torch.bfloat16, 2, 2), (torch.bfloat16, 1, 1)]
)
def test_delta_chunk(device: torch.device, dtype: torch.dtype, key_heads: int, heads: int) -> None:
    sequences = place(LENGTHS, STARTS, SLOTS, [[0]] * len(SLOTS), device)
    rows = example(device, dtype, sequences.num_rows, key_heads, heads)
    states = normal(device, torch.float32, 9, heads, DIM, DIM)
    for slot in (1, 3, 4, 5, 7, 8):  # new sequences, and slots of nobody here
        states[slot] = torch.nan
    before = states.double().cpu()
    found = run(rows, states, sequences)
    stops = torch.tensor(LENGTHS).cumsum(0).tolist()
    for length, stop, start, slot in zip(LENGTHS, stops, STARTS, SLOTS, strict=True):
        here = slice(stop - length, stop)
        state = before[slot] if start else torch.zeros_like(before[slot])
        expected, state = reference.delta_rule(*rows.of(here).wide(), state)
        assert_near(found[here], expected, BOUND[dtype])
        assert_near(states[slot], state, BOUND[dtype])
    assert states[[1, 4, 5, 8]].isnan().all()


def test_a_head_in_parts_and_in_one_that_is_wider_than_it(device: torch.device) -> None:
    """Value dims are walked apart, or all at once where the table's tile is made for larger heads."""
    dtype, value_dim = torch.float32, 32
    rows = example(device, dtype, 70, 1, 1)
    rows = rows._replace(v=normal(device, dtype, 70, 1, value_dim))
    states = torch.zeros(2, 1, DIM, value_dim, device=device)
    expected, state = reference.delta_rule(*rows.wide(), states[0].double().cpu())
    for slot, width in enumerate((16, 128)):
        sequences = place([70], [0], [slot], [[0]], device)
        assert_near(run(rows, states, sequences, Tile(num_warps=4, sizes={"v": width})), expected, BOUND[dtype])
        assert_near(states[slot], state, BOUND[dtype])


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -30.0])
def test_extreme_decays(device: torch.device, log_decay: float) -> None:
    rows = example(device, torch.float32, 128, 1, 1)._replace(log_decay=torch.full((128, 1), log_decay, device=device))
    states = torch.zeros(1, 1, DIM, DIM, device=device)
    expected, state = reference.delta_rule(*rows.wide(), states[0].double().cpu())
    assert_near(run(rows, states, place([128], [0], [0], [[0]], device)), expected, BOUND[torch.float32])
    assert_near(states[0], state, BOUND[torch.float32])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equal_keys_that_never_fade(device: torch.device, dtype: torch.dtype) -> None:
    """The triangular system at its worst: each token overwrites what the one before has stored.

    An output is then the sum of all 64 corrections, each rounded to bf16: 8 times 2^-9, and as much for the state;
    three times that where the interpreter cuts off.
    """
    bound = {torch.float32: 1e-5, torch.bfloat16: 16 * 2.0**-9 * (3 if INTERPRETED else 1)}[dtype]
    rows = example(device, dtype, 64, 1, 1)
    rows = rows._replace(
        k=rows.k[:1].sign().expand(64, 1, DIM) * DIM**-0.5,  # of length 1 in any dtype
        log_decay=torch.zeros(64, 1, device=device),
        beta=torch.ones(64, 1, device=device),
    )
    states = torch.zeros(1, 1, DIM, DIM, device=device)
    expected, state = reference.delta_rule(*rows.wide(), states[0].double().cpu())
    assert_near(run(rows, states, place([64], [0], [0], [[0]], device)), expected, bound)
    assert_near(states[0], state, bound)


def test_a_sequence_has_the_same_bits_whatever_its_neighbours_hold(device: torch.device) -> None:
    """The whole prompt alone; in chunks at multiples of 64; and between neighbours that are NaN."""
    dtype, length = torch.bfloat16, 136
    rows = example(device, dtype, length, 1, 2)
    states = torch.full((6, 2, DIM, DIM), torch.nan, device=device)
    whole = run(rows, states, place([length], [0], [2], [[0]], device))
    for first, stop in ((0, 128), (128, 136)):
        found = run(rows.of(slice(first, stop)), states, place([stop - first], [first], [4], [[0]], device))
        assert torch.equal(found, whole[first:stop])
    assert torch.equal(states[4], states[2])
    poison = [torch.full_like(tensor, torch.nan) for tensor in rows]
    crowd = Rows(*(torch.cat((bad[:65], good, bad[:130])) for good, bad in zip(rows, poison, strict=True)))
    sequences = place([65, length, 130], [0, 0, 64], [0, 5, 1], [[0]] * 3, device)
    assert torch.equal(run(crowd, states, sequences)[65 : 65 + length], whole)
    assert torch.equal(states[5], states[2])
