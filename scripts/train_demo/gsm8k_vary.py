"""GSM8K's train problems with other numbers: 7,273 problems are soon known by heart, their patterns are not.

The calculator marks (``<<48/2=24>>``) say which number comes from where. New numbers in the question are carried
through them; a variant counts only if every result stays whole and no number of the text has two origins.
"""

import random
import re

from arithmetic import apply, wrong_equations
from gsm8k_train import Solved, clean

MAX_TRIES = 4
MAX_VALUE = 9_999
_NUMBER = re.compile(r"\d+")
_MARK = re.compile(r"<<([^<>]*)>>")
_EQUATION = re.compile(r"\d+(?:[+\-*/]\d+)+=\d+")
_TERM = re.compile(r"\d+|[+\-*/]")
# Parts of fractions, decimals, times, dates, ordinals and grouped thousands stay as they are.
_FIXED = re.compile(r"\d+(?:[/.:,]\d+)+|\d+(?:st|nd|rd|th)\b")
# Numbers that solutions bring along themselves: days, months, minutes.
_CUSTOMARY = {7, 12, 24, 30, 52, 60, 100, 365}
_WORDS = {
    2: "two|twice|double|half|both|pair|couple",
    3: "three|thrice|triple|third",
    4: "four|quarter",
    5: "five|fifth",
    6: "six",
    8: "eight",
    9: "nine",
    10: "ten",
}

Equation = tuple[list[str], int]  # terms and operators in turn, result


def vary(one: Solved, rng: random.Random) -> Solved | None:
    """None when its numbers cannot be told apart, or no new ones were found."""
    equations = _equations(one.marked)
    asked = set(map(int, _NUMBER.findall(one.question)))
    if not equations or not _unambiguous(equations, asked):
        return None
    fixed = _CUSTOMARY | {int(part) for text in _FIXED.findall(one.question) for part in _NUMBER.findall(text)}
    fixed |= {number for number, words in _WORDS.items() if re.search(words, one.question, re.IGNORECASE)}
    used = {int(term) for terms, _ in equations for term in terms if term.isdigit()}
    free = sorted(number for number in asked & used - fixed if 2 <= number <= 1_000)
    for _ in range(MAX_TRIES if free else 0):
        mapping = _carry(equations, {number: _other(number, one.question, rng) for number in free})
        if mapping:
            marked = _replace(one.marked, mapping)
            answer = clean(marked)
            if not wrong_equations(answer):
                return Solved(_replace(one.question, mapping), answer, marked)
    return None


def _equations(marked: str) -> list[Equation]:
    """Empty when one of them is more than whole numbers in a chain of one kind of operator."""
    found: list[Equation] = []
    for text in _MARK.findall(marked):
        if not _EQUATION.fullmatch(text):
            return []
        left, _, result = text.partition("=")
        terms = _TERM.findall(left)
        operators = set(terms[1::2])
        if operators & {"+", "-"} and operators & {"*", "/"}:
            return []
        found.append((terms, int(result)))
    return found


def _unambiguous(equations: list[Equation], asked: set[int]) -> bool:
    """No result equals a number of the question, an earlier result or a constant."""
    results = [result for _, result in equations]
    operands = {int(term) for terms, _ in equations for term in terms if term.isdigit()}
    constants = operands - asked - set(results)
    return len(set(results)) == len(results) and not set(results) & (asked | constants)


def _other(number: int, question: str, rng: random.Random) -> int:
    if f"{number}%" in question or f"{number} percent" in question:
        return rng.choice((10, 20, 25, 30, 40, 50, 60, 75, 80)) if number < 100 else number
    return rng.randint(2, 9) if number < 5 else rng.randint(number // 2, 2 * number)


def _carry(equations: list[Equation], mapping: dict[int, int]) -> dict[int, int]:
    """The mapping with that of every result; empty when one is not whole or out of bounds."""
    mapping = dict(mapping)
    for terms, result in equations:
        value = mapping.get(int(terms[0]), int(terms[0]))
        for operator, operand in zip(terms[1::2], terms[2::2], strict=True):
            try:
                value = apply(value, operator, mapping.get(int(operand), int(operand)))
            except ValueError:
                return {}
        if not 1 <= value <= MAX_VALUE:
            return {}
        mapping[result] = value
    return mapping


def _replace(text: str, mapping: dict[int, int]) -> str:
    return _NUMBER.sub(lambda found: str(mapping.get(int(found[0]), int(found[0]))), text)
