"""Philox-4x32-10 against its authors' known answers, and the uniforms made of it."""

import pytest
import torch

from splitrank.models.ops.philox import philox, uniform

# Counter, key, result: the lines "philox4x32 10" of ``kat_vectors`` in the authors' library Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_the_known_answers_all_rows_at_once() -> None:
    counters, keys, expected = (torch.tensor([words(line[column]) for line in KNOWN_ANSWERS]) for column in range(3))
    assert philox(counters, keys).tolist() == expected.tolist()


def test_a_uniform_is_the_first_two_words_of_seed_and_position() -> None:
    first, second = words(KNOWN_ANSWERS[0][2])[:2]
    found = uniform(torch.tensor([0]), torch.tensor([0]))
    assert found.dtype == torch.float64
    assert float(found) == ((first << 32 | second) >> 11) / 2**53


def test_seed_and_position_use_all_of_their_64_bits() -> None:
    bits = torch.tensor([1 << bit for bit in range(63)] + [-(2**63)])
    zeros = torch.zeros_like(bits)
    drawn = torch.cat((uniform(bits, zeros), uniform(zeros, bits), uniform(zeros[:1], zeros[:1])))
    assert len(set(drawn.tolist())) == 2 * 64 + 1
    assert ((drawn >= 0) & (drawn < 1)).all()


def test_a_row_is_the_same_alone_and_among_others() -> None:
    seeds, positions = torch.arange(-40, 60), torch.arange(100) * 3
    together = uniform(seeds, positions)
    alone = torch.cat([uniform(seeds[row : row + 1], positions[row : row + 1]) for row in range(100)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("by", ["seed", "position"])
def test_neighbouring_seeds_and_positions_are_uniform_and_unrelated(by: str) -> None:
    """Chi-square over 16 x 16 cells of consecutive pairs: of 255 degrees of freedom, 380 is beyond p = 1e-6."""
    num = 2**16
    counting, fixed = torch.arange(num), torch.full((num,), 12345)
    drawn = uniform(*((counting, fixed) if by == "seed" else (fixed, counting)))
    cells = (drawn * 16).long()
    pairs = torch.bincount(cells[:-1] * 16 + cells[1:], minlength=256).double()
    expected = (num - 1) / 256
    assert float(((pairs - expected) ** 2 / expected).sum()) < 380
