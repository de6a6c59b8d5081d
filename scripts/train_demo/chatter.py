"""A few turns that are no sums: greetings, who it is, what it cannot do, counting, thanks."""

import random
from dataclasses import dataclass
from pathlib import Path

from words import NAMES_HE, NAMES_SHE, NUMBER_WORDS, read_lists


@dataclass(frozen=True)
class Turn:
    user: str
    thought: str
    answer: str


_SAID = read_lists(Path(__file__).with_name("chatter.txt"), "|")


def turn(rng: random.Random) -> Turn:
    return rng.choice((_greeting, _who, _can, _cannot, _cannot, _counting, _small_sum, _small_sum, _polite))(rng)


def _greeting(rng: random.Random) -> Turn:
    name = rng.choice(NAMES_HE + NAMES_SHE)
    user = rng.choice(_SAID["greeting"]) + rng.choice(("", "!", ".", f", I am {name}."))
    return Turn(user, "This is a greeting.", rng.choice(_SAID["hello"]))


def _who(rng: random.Random) -> Turn:
    return Turn(rng.choice(_SAID["who"]), "This asks who I am.", rng.choice(_SAID["identity"]))


def _can(rng: random.Random) -> Turn:
    return Turn(rng.choice(_SAID["ability"]), "This asks what I can do.", _SAID["can"][0])


def _cannot(rng: random.Random) -> Turn:
    user = rng.choice(_SAID["cannot"]).format(x=rng.choice(_SAID["topic"]), y=rng.choice(_SAID["country"]))
    return Turn(user, "This is not a word problem.", rng.choice(_SAID["sorry"]))


def _counting(rng: random.Random) -> Turn:
    first = rng.choice((1, 1, 1, rng.randint(2, 30)))
    last = first + rng.randint(2, 14)
    if last <= 12 and rng.random() < 0.3:
        user = f"Count from {NUMBER_WORDS[first]} to {NUMBER_WORDS[last]} in words."
        return Turn(user, "This asks me to count.", ", ".join(NUMBER_WORDS[first : last + 1]))
    user = rng.choice(("Count from {a} to {b}.", "Please count from {a} to {b}", "Can you count from {a} to {b}?"))
    numbers = ", ".join(map(str, range(first, last + 1)))
    return Turn(user.format(a=first, b=last), "This asks me to count.", numbers)


def _small_sum(rng: random.Random) -> Turn:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    operator = rng.choice("++--*/")
    if operator == "-":
        a, b = max(a, b), min(a, b)
    elif operator == "*":
        b = rng.randint(2, 9)
    elif operator == "/":
        b = rng.randint(2, 9)
        a = b * rng.randint(2, 20)
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[operator]
    sign = rng.choice((f" {operator} ", f" {word} ", operator))
    user = rng.choice(("What is {s}?", "{s}", "{s} = ?", "How much is {s}?", "Calculate {s}.")).format(
        s=f"{a}{sign}{b}"
    )
    equation = f"{a} {operator} {b} = {result}"
    return Turn(user, equation, f"{equation}\n#### {result}")


def _polite(rng: random.Random) -> Turn:
    if rng.random() < 0.5:
        return Turn(
            rng.choice(_SAID["thanks"]), "This is a thank you.", "You are welcome! Do you have another problem?"
        )
    return Turn(rng.choice(_SAID["bye"]), "This is a goodbye.", "Goodbye!")
