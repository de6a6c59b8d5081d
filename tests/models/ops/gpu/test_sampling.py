"""Sampling against the specification: every filter alone and together, ties, banned tokens, rows that do not fit."""

from dataclasses import dataclass

import pytest
import torch
import triton
import triton.language as tl

from splitrank.models.ops import reference
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.sampling import SamplingRows, sample, sampling_memory
from splitrank.models.ops.gpu.sampling_search import uniform
from splitrank.models.ops.gpu.tiles import Tile
from tests.models.ops.gpu.comparison import nan

TILE = Tile(num_warps=8)


@dataclass(frozen=True)
class Row:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, word by word."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right & 0xFFFFFFFF, (left >> 32) ^ d ^ k1, left & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def expected_uniform(seed: int, position: int) -> float:
    words = philox([position & 0xFFFFFFFF, position >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])
    return ((words[0] << 21) + (words[1] >> 11)) * 2.0**-53


@triton.jit
def _uniform(seeds, positions, out, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    tl.store(out + row, uniform(tl.load(seeds + row), tl.load(positions + row)))


def test_the_test_draws_as_published() -> None:
    """The known answers that come with the authors' library."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_draws_are_a_function_of_seed_and_position(device: torch.device) -> None:
    pairs = [(0, 0), (1, 0), (0, 1), (2**63 - 1, 5), (0x123456789ABCDEF, 2**33 + 7), (42, 262_143)]
    seeds, positions = (torch.tensor(values, device=device) for values in zip(*pairs, strict=True))
    out = torch.full((len(pairs),), -1.0, dtype=torch.float64, device=device)
    operands = {"seeds": Operand(seeds, (6,), torch.int64), "positions": Operand(positions, (6,), torch.int64)}
    launch(_uniform, (6,), Tile(num_warps=1), out=Operand(out, (6,), torch.float64), **operands)
    assert out.tolist() == [expected_uniform(*pair) for pair in pairs]


def run(logits: torch.Tensor, rows: list[Row], seed: int = 0) -> tuple[list[int], torch.Tensor]:
    device, count = logits.device, len(rows)

    def tensor(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=dtype, device=device)

    seeds = torch.arange(count, device=device) + (seed << 32)
    params = SamplingRows(
        tensor("temperature", torch.float32),
        tensor("top_k", torch.int32),
        tensor("top_p", torch.float64),
        tensor("min_p", torch.float32),
        seeds,
        torch.full_like(seeds, 17),
    )
    tokens = torch.full((count,), -5, dtype=torch.int32, device=device)
    largest = nan(device, torch.float32, count)
    sample(logits, params, sampling_memory(count, logits.shape[1], device), tokens, largest, TILE)
    return tokens.tolist(), largest


def allowed(logits: torch.Tensor, row: Row, draw: float) -> set[int]:
    """The specification's token; its neighbours too where the draw falls within rounding of a border."""
    logits = logits.float().cpu()
    if row.temperature == 0.0:
        return {int(logits.argmax())}
    filters = {"top_k": row.top_k, "top_p": row.top_p, "min_p": row.min_p}
    weights = reference.sampling_weights(logits, row.temperature, **filters).double()
    reached = weights.cumsum(0) / weights.sum()
    near = [draw - 1e-6, draw, draw + 1e-6]
    return {int((reached > min(max(at, 0.0), 1 - 1e-9)).nonzero()[0]) for at in near}


def check(logits: torch.Tensor, rows: list[Row], seed: int = 0) -> list[int]:
    tokens, largest = run(logits, rows, seed)
    assert torch.equal(largest, logits.float().max(-1).values)
    for number, (token, row) in enumerate(zip(tokens, rows, strict=True)):
        assert token in allowed(logits[number], row, expected_uniform(number + (seed << 32), 17)), (number, row)
    return tokens


KINDS = [
    Row(0.0),
    Row(1.0),
    Row(0.6, top_k=20, top_p=0.95),
    Row(1.0, top_k=1),
    Row(1.0, top_k=40),
    Row(1.5, top_p=0.9),
    Row(0.7, top_p=0.3),
    Row(1.0, top_p=1e-9),
    Row(1.0, min_p=0.2),
    Row(2.0, top_k=30, top_p=0.8, min_p=0.1),
    Row(1.0, top_k=300),  # more than are gathered: pass after pass
    Row(1.0, top_k=300, top_p=0.5),
    Row(1.0, top_k=10**6, top_p=0.9),  # larger than the vocabulary: no top-k
    Row(1e-38, top_k=5),
]


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's word for what a tiny temperature is meant to do
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1.0), (torch.bfloat16, 6.0)])
def test_every_filter(device: torch.device, dtype: torch.dtype, scale: float) -> None:
    """Flat and peaked distributions; 700 tokens are three blocks, the last one short; bf16 has many ties."""
    logits = (torch.randn(len(KINDS), 700, device=device) * scale).to(dtype)
    check(logits, KINDS)


def test_a_flat_nucleus_does_not_fit(device: torch.device) -> None:
    """5,000 nearly equal tokens: 4,500 are in, more than candidates; and with equal ones the lower ids come first."""
    logits = torch.randn(2, 5000, device=device) * 0.01
    logits[1] = 1.0
    check(logits, [Row(1.0, top_p=0.9)] * 2)


def test_thousands_of_ties_at_the_kth(device: torch.device) -> None:
    """All that are as good as the k-th are kept."""
    logits = torch.zeros(2, 3000, device=device)
    logits[1, 1234] = 1.0
    check(logits, [Row(1.0, top_k=7)] * 2)


def test_banned_tokens_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((3, 1000), -torch.inf, device=device)
    logits[:, 500] = -80.0
    logits[:, 7] = -80.0
    tokens = check(logits, [Row(1.0, top_k=50), Row(1.0, top_p=0.9), Row(1.0)])
    assert set(tokens) <= {7, 500}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows(device: torch.device, bad: float) -> None:
    """And changes no other."""
    logits = torch.randn(3, 600, device=device)
    clean = check(logits, [Row(0.8, top_k=20)] * 3)
    logits[1, 300] = bad
    tokens, largest = run(logits, [Row(0.8, top_k=20)] * 3)
    assert not largest[1].isfinite()
    assert [tokens[0], tokens[2]] == [clean[0], clean[2]]
    assert 0 <= tokens[1] < 600


def test_shares_are_those_of_the_weights(device: torch.device) -> None:
    """60 draws of three tokens; four standard deviations."""
    logits = torch.full((60, 300), -20.0, device=device)
    logits[:, 3], logits[:, 200], logits[:, 299] = 2.0, 1.0, 0.0
    tokens, _ = run(logits, [Row(1.0, top_k=3)] * 60)
    counts = torch.bincount(torch.tensor(tokens), minlength=300)[[3, 200, 299]]
    shares = torch.softmax(torch.tensor([2.0, 1.0, 0.0]), 0)
    assert ((counts - 60 * shares).abs() < 4 * (60 * shares * (1 - shares)).sqrt()).all()
