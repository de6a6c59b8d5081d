"""Arithmetic as a pupil writes it: every equality within reach of one look, hard ones spelled as smaller ones.

``show(["47", "*", "12"])`` is ``47 * 12 = 47 * 10 + 47 * 2 = 470 + 94 = 564``. A digit model learns single-digit
products, quotients up to three digits and sums; it does not learn 47 * 12 in one go.
"""

import re
from fractions import Fraction

_EQUATION = re.compile(r"\d[\d +\-*/.=]*=[\d +\-*/.]*\d")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[+\-*/]")


def show(terms: list[str]) -> str:
    """Numbers and operators in turn, read from left to right, as one chain of equalities."""
    if len(terms) == 3:
        return _show_binary(int(terms[0]), terms[1], int(terms[2]))
    if _all_easy(terms) and not _mixes_levels(terms):
        return _show_easy_chain(terms)
    value, parts = int(terms[0]), []
    for operator, operand in zip(terms[1::2], terms[2::2], strict=True):
        parts.append(_show_binary(value, operator, int(operand)))
        value = apply(value, operator, int(operand))
    return "; ".join(parts)


def apply(left: int, operator: str, right: int) -> int:
    """ValueError for a division with a remainder or by nothing."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0 or left % right:
        raise ValueError(f"{left} / {right} is not whole")
    return left // right


def _mixes_levels(terms: list[str]) -> bool:
    """``2 + 3 * 4`` read from left to right would not be what it says."""
    operators = set(terms[1::2])
    return bool(operators & {"+", "-"}) and bool(operators & {"*", "/"})


def _all_easy(terms: list[str]) -> bool:
    value = int(terms[0])
    for operator, operand in zip(terms[1::2], terms[2::2], strict=True):
        if _smaller_steps(value, operator, int(operand)):
            return False
        value = apply(value, operator, int(operand))
    return True


def _show_easy_chain(terms: list[str]) -> str:
    shown, rest = [" ".join(terms)], terms
    while len(rest) > 1:
        rest = [str(apply(int(rest[0]), rest[1], int(rest[2]))), *rest[3:]]
        shown.append(" ".join(rest))
    return " = ".join(shown)


def _show_binary(left: int, operator: str, right: int) -> str:
    shown = [f"{left} {operator} {right}"]
    steps = _smaller_steps(left, operator, right)
    if steps:
        values = [apply(*step) for step in steps]
        shown.append(" + ".join(f"{a} {op} {b}" for a, op, b in steps))
        shown.append(_show_easy_chain(" + ".join(map(str, values)).split()))
        return " = ".join(shown)
    return " = ".join([*shown, str(apply(left, operator, right))])


def _smaller_steps(left: int, operator: str, right: int) -> list[tuple[int, str, int]]:
    """The parts whose sum is the result; empty when it is easy at once."""
    if operator == "*":
        split_left = _significant_digits(left) < _significant_digits(right)
        if min(_significant_digits(left), _significant_digits(right)) < 2:
            if max(_significant_digits(left), _significant_digits(right)) < 3 or 1 in (left, right):
                return []
            split_left = not split_left
        places = _places(left if split_left else right)
        return [(part, "*", right) if split_left else (left, "*", part) for part in places] if len(places) > 1 else []
    if operator == "/" and right > 1 and _significant_digits(right) + right % 10 > 1:
        places = _places(left // right)
        return [(part * right, "/", right) for part in places] if len(places) > 2 else []
    return []


def _significant_digits(number: int) -> int:
    return len(str(number).rstrip("0"))


def _places(number: int) -> list[int]:
    """236 is 200, 30 and 6."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - index - 1) for index, digit in enumerate(digits) if digit != "0"]


def equations(text: str) -> list[str]:
    return _EQUATION.findall(text)


def wrong_equations(text: str) -> list[str]:
    """Every chain in ``text`` whose sides are not all equal, by exact fractions and the usual precedence, or are no
    sums at all."""
    return [chain for chain in equations(text) if not _holds(chain)]


def _holds(chain: str) -> bool:
    try:
        return len({_evaluate(side) for side in chain.split("=")}) == 1
    except (ValueError, IndexError, ZeroDivisionError):
        return False


def _evaluate(expression: str) -> Fraction:
    tokens = _TOKEN.findall(expression)
    total, sign, product = Fraction(0), 1, Fraction(tokens[0])
    for operator, operand in zip(tokens[1::2], tokens[2::2], strict=True):
        if operator == "*":
            product *= Fraction(operand)
        elif operator == "/":
            product /= Fraction(operand)
        else:
            total += sign * product
            sign, product = (1 if operator == "+" else -1), Fraction(operand)
    return total + sign * product
