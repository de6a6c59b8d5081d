"""Are the logits of two layouts the same bits? Compared by a digest of each generated token's row."""

from collections.abc import Iterable
from dataclasses import dataclass

from splitrank.serving.gsm8k.run import Answer


@dataclass(frozen=True)
class Difference:
    """``token`` of the answer to ``question``, both counted from 0."""

    question: int
    token: int


@dataclass(frozen=True)
class LogitComparison:
    """A row that only one of the answers has is a difference. No rows: the layouts are not both exact."""

    num_rows: int
    num_equal: int
    first: Difference | None


def compare_logits(first: list[Answer], second: list[Answer], questions: Iterable[int]) -> LogitComparison:
    """Of those ``questions`` that both layouts answered; the first difference is in the order of the questions."""
    num_rows = num_equal = 0
    found: Difference | None = None
    for question in questions:
        ours, theirs = first[question].digests, second[question].digests
        equal = [a == b for a, b in zip(ours, theirs, strict=False)]
        num_rows += max(len(ours), len(theirs))
        num_equal += sum(equal)
        if found is None and not (all(equal) and len(ours) == len(theirs)):
            found = Difference(question, [*equal, False].index(False))
    return LogitComparison(num_rows, num_equal, found)
