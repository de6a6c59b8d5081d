"""Statistics against values computed by scipy.stats (``binomtest``, ``sem``)."""

import math

import pytest

from splitrank.serving.gsm8k.statistics import accuracy, compare_paired, mcnemar_exact


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    rows = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return [a for a, _ in rows], [b for _, b in rows]


def test_standard_error_is_lm_evals() -> None:
    found = accuracy([True] * 85 + [False] * 15)
    assert found.value == 0.85
    assert found.standard_error == pytest.approx(math.sqrt(0.85 * 0.15 / 99), rel=1e-12)


def test_standard_error_of_the_full_test_set_is_about_one_point() -> None:
    found = accuracy([True] * 1121 + [False] * 198)
    assert found.standard_error == pytest.approx(0.009838590860907022, rel=1e-12)


@pytest.mark.parametrize("right", [[], [True], [False]])
def test_fewer_than_two_answers_have_no_error(right: list[bool]) -> None:
    assert accuracy(right).standard_error is None


def test_all_right_and_all_wrong() -> None:
    assert (accuracy([True] * 7).value, accuracy([True] * 7).standard_error) == (1.0, 0.0)
    assert (accuracy([False] * 7).value, accuracy([False] * 7).standard_error) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 0.0625),
        (0, 6, 0.03125),
        (0, 8, 0.0078125),
        (3, 3, 1.0),
        (5, 15, 0.041389465332),
        (10, 25, 0.016673847800),
        (59, 6, 4.964650327e-12),
    ],
)
def test_mcnemar_against_the_binomial_test(first: int, second: int, p: float) -> None:
    assert mcnemar_exact(first, second) == pytest.approx(p, rel=1e-9)
    assert mcnemar_exact(second, first) == mcnemar_exact(first, second)


def test_mcnemar_of_many_discordant_answers_stays_finite() -> None:
    assert 0.0 < mcnemar_exact(1000, 3000) < 1e-200
    assert mcnemar_exact(2000, 2000) == 1.0


def test_paired_interval_half_width_at_three_percent_discordant() -> None:
    found = compare_paired(*outcomes(800, 20, 20, 479))  # 40 of 1,319 differ
    assert found.difference == 0.0
    assert found.interval_high is not None
    assert found.interval_low is not None
    assert found.interval_high == pytest.approx(0.0094, abs=1e-4)
    assert found.interval_low == -found.interval_high


def test_paired_difference_counts_and_interval() -> None:
    found = compare_paired(*outcomes(50, 4, 14, 32))
    assert (found.num_questions, found.only_first_right, found.only_second_right) == (100, 4, 14)
    assert found.difference == pytest.approx(0.10)
    # variance of the differences: (18 - 100 * 0.01) / 99; half width 1.95996 * sqrt(that / 100)
    assert found.interval_low == pytest.approx(0.10 - 0.08121849813666694, rel=1e-12)
    assert found.interval_high == pytest.approx(0.10 + 0.08121849813666694, rel=1e-12)
    assert found.mcnemar_p == pytest.approx(0.0308837890625, rel=1e-12)


def test_identical_answers_differ_by_nothing() -> None:
    found = compare_paired(*outcomes(3, 0, 0, 4))
    assert (found.difference, found.interval_low, found.interval_high, found.mcnemar_p) == (0.0, 0.0, 0.0, 1.0)


def test_no_and_one_question() -> None:
    assert compare_paired([], []).interval_low is None
    one = compare_paired([True], [False])
    assert (one.difference, one.interval_low, one.mcnemar_p) == (-1.0, None, 1.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        compare_paired([True, True], [True])
