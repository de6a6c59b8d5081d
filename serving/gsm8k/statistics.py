"""Accuracy with its error, and the paired comparison of two layouts on the same questions."""

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054  # 97.5% point of the normal distribution


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers and its standard error; no error from fewer than two answers."""

    num_right: int
    num_answers: int
    value: float
    standard_error: float | None


@dataclass(frozen=True)
class PairedComparison:
    """``difference``: accuracy of the second minus that of the first, with its 95% interval (Wald, paired)."""

    num_questions: int
    only_first_right: int
    only_second_right: int
    difference: float
    interval_low: float | None
    interval_high: float | None
    mcnemar_p: float


def accuracy(right: list[bool]) -> Accuracy:
    """Standard error sqrt(p (1 - p) / (n - 1)), as lm-eval reports it."""
    count = len(right)
    share = sum(right) / count if count else 0.0
    error = math.sqrt(share * (1.0 - share) / (count - 1)) if count > 1 else None
    return Accuracy(sum(right), count, share, error)


def compare_paired(first: list[bool], second: list[bool]) -> PairedComparison:
    """``first[i]`` and ``second[i]`` are the same question, right or wrong."""
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs equal lengths, not {len(first)} and {len(second)}")
    count = len(first)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    difference = (only_second - only_first) / count if count else 0.0
    half = _half_width(only_first + only_second, difference, count)
    low, high = (None, None) if half is None else (difference - half, difference + half)
    return PairedComparison(
        count, only_first, only_second, difference, low, high, mcnemar_exact(only_first, only_second)
    )


def _half_width(num_discordant: int, difference: float, count: int) -> float | None:
    """Half the 95% interval of the mean difference per question (-1, 0 or 1), from the sample variance."""
    if count < 2:
        return None
    variance = (num_discordant - count * difference**2) / (count - 1)
    return Z_95 * math.sqrt(max(0.0, variance) / count)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p: how often a fair coin splits the discordant questions at least this unevenly."""
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    share: float = 2 * tail / 2**total  # integers until the division: exact for any count
    return min(1.0, share)
