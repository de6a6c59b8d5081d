"""Problems of each split. Train and test never share a kind's combination of numbers, nor a held-out frame.

A combination belongs to the test when its hash says so, whatever the seed: training streams without end and yet
cannot meet a test question.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from problem import MAX_VALUE, Problem, verify
from stories import COMPOSERS
from template import Kind, make_problem, read_kinds

SPLITS = ("train", "seen", "new_frames", "larger_numbers", "longer_chains")
LARGE_SCALE = 5
LARGE_MAX_VALUE = 99_999
_TEST_SHARE = 10  # one combination in ten
_STORY_SHARE = 0.25


@lru_cache(maxsize=1)
def text_kinds() -> tuple[Kind, ...]:
    return tuple(read_kinds(Path(__file__).parent / "kinds"))


def num_kinds() -> int:
    return len(text_kinds()) + len(COMPOSERS)


def belongs_to_test(problem: Problem) -> bool:
    return hashlib.sha256(problem.combination.encode()).digest()[0] % _TEST_SHARE == 0


def problems(split: str, seed: str, taught: bool = False) -> Iterator[Problem]:
    """Without end; the same for the same seed. ``taught``: with the frames of training alone. ValueError for an unknown
    split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}/{seed}")
    while True:
        try:
            problem = _one(split, rng, taught)
        except ValueError:  # no numbers fit this shape: another one
            continue
        if belongs_to_test(problem) == (split != "train"):
            yield problem


def _one(split: str, rng: random.Random, taught: bool) -> Problem:
    large = split == "larger_numbers"
    max_value = LARGE_MAX_VALUE if large else MAX_VALUE
    problem = make_problem(
        _kind(split, rng),
        rng,
        held_out=split == "new_frames",
        scale=LARGE_SCALE if large else 1,
        max_value=max_value,
        taught=taught,
    )
    return verify(problem, max_value)


def _kind(split: str, rng: random.Random) -> Kind:
    if split == "longer_chains":
        return rng.choice(COMPOSERS)(rng, rng.randint(7, 8))
    if rng.random() < _STORY_SHARE:
        return rng.choice(COMPOSERS)(rng, rng.choice((2, 3, 3, 4, 4, 5, 6)))
    return rng.choice(text_kinds())
