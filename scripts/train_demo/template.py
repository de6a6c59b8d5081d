"""Problem kinds written as text (kinds/*.txt), and how one becomes a problem.

    kind half_as_many
    draw a=5..49*2
    ask {name} [sold|has sold] {a} {thing} in {month} and half as many in {month2}. How many {thing} is that?
    new Half of the {a} {thing} that {name} sold in {month} ...
    step b = a / 2 | In {month2} {name} sold {=} {thing}. | Half of that is {=} {thing}.
    step t = a + b | Together that is {=} {thing}.

``draw``: ``a=5..49`` (bounds included), times a number or an earlier draw (``*b``), or one of ``a=10|20|50``; ``a>b``
asks for it; ``given x = a * b`` is a number of the question that is not drawn. ``ask`` are the frames of training and
of the test of seen frames, ``also`` those of training alone (more of them change no test), ``new`` those that only
the test has. ``[x|y]`` is either. A step is read from left to right; its sentences hold
``{=}`` for the shown sum. ``plain`` keeps distractors and number words out.
A line that begins with a space continues the one before.
"""

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from arithmetic import apply, show
from problem import Problem, Step
from rewording import LOSSY, NUM_SPLICED, SPLICED, spliced, with_lost_words
from words import FRACTION_WORDS, NUMBER_WORDS, Slots

MAX_TRIES = 2_000
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+|=)\}")
_BEGINNING = re.compile(r"^[a-z]|(?<=[.?!] )[a-z]")
_DISTRACTORS = (
    "{name} is {x} years old.",
    "{name} has {x} cousins.",
    "{name} lives at number {x} of the street.",
    "It takes {name} {x} minutes to walk home.",
    "There are {x} birds on the roof.",
    "{name} got up at {x} o'clock.",
    "{name} has been to {town} {x} times.",
)


@dataclass(frozen=True)
class Draw:
    name: str
    low: int = 0
    high: int = 0
    factor: str = "1"
    choices: tuple[int, ...] = ()


@dataclass(frozen=True)
class StepRule:
    name: str
    terms: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass
class Kind:
    name: str
    draws: list[Draw] = field(default_factory=list)
    conditions: list[tuple[str, str]] = field(default_factory=list)  # the first is larger
    frames: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    given: list[StepRule] = field(default_factory=list)
    steps: list[StepRule] = field(default_factory=list)
    shape: str = ""  # of a composed one: part of the combination
    plain: bool = False


def read_kinds(folder: Path) -> list[Kind]:
    return [kind for path in sorted(folder.glob("*.txt")) for kind in parse_kinds(path.read_text(encoding="utf-8"))]


def parse_kinds(text: str) -> list[Kind]:
    """ValueError for a line that means nothing."""
    kinds: list[Kind] = []
    for line in text.replace("\n ", " ").splitlines():
        word, _, rest = re.sub(" +", " ", line.strip()).partition(" ")
        if word == "kind":
            kinds.append(Kind(rest))
        elif word == "plain":
            kinds[-1].plain = True
        elif word == "draw":
            for part in rest.split():
                _parse_draw(kinds[-1], part)
        elif word in ("ask", "also", "new"):
            {"ask": kinds[-1].frames, "also": kinds[-1].also, "new": kinds[-1].held_out}[word].append(rest)
        elif word == "given":
            name, _, terms = rest.partition(" = ")
            kinds[-1].given.append(StepRule(name, tuple(terms.split()), ()))
        elif word == "step":
            kinds[-1].steps.append(_parse_step(rest))
        elif word and not word.startswith("#"):
            raise ValueError(f"not a line of a kind: {line!r}")
    return kinds


def _parse_draw(kind: Kind, text: str) -> None:
    if ">" in text:
        larger, _, smaller = text.partition(">")
        kind.conditions.append((larger, smaller))
        return
    name, _, values = text.partition("=")
    if "|" in values:
        kind.draws.append(Draw(name, choices=tuple(map(int, values.split("|")))))
        return
    bounds, _, factor = values.partition("*")
    low, _, high = bounds.partition("..")
    kind.draws.append(Draw(name, int(low), int(high), factor or "1"))


def _parse_step(text: str) -> StepRule:
    expression, *sentences = [part.strip() for part in text.split("|")]
    name, _, terms = expression.partition(" = ")
    if not sentences or not terms or not all("{=}" in sentence for sentence in sentences):
        raise ValueError(f"not a step: {text!r}")
    return StepRule(name, tuple(terms.split()), tuple(sentences))


def draw_numbers(kind: Kind, rng: random.Random, scale: int, max_value: int) -> tuple[dict[str, int], list[int]]:
    """(all variables, values of the steps): whole, from 2 to ``max_value``. ``scale`` stretches the draws' bounds."""
    for _ in range(MAX_TRIES):
        numbers: dict[str, int] = {}
        for draw in kind.draws:
            numbers[draw.name] = _draw(draw, numbers, rng, scale)
        values = _step_values(kind, numbers)
        if (
            values
            and min(values) >= 2
            and max([*values, *numbers.values()]) <= max_value
            and all(numbers[larger] > _operand(smaller, numbers) for larger, smaller in kind.conditions)
        ):
            return numbers, values
    raise ValueError(f"{kind.name}: no numbers that fit in {MAX_TRIES} tries")


def _draw(draw: Draw, numbers: dict[str, int], rng: random.Random, scale: int) -> int:
    if draw.choices:
        return rng.choice(draw.choices)
    stretch = scale if draw.high - draw.low >= 8 else 1
    low = draw.low if stretch == 1 else draw.high + 1
    return rng.randint(low, draw.high * stretch) * _operand(draw.factor, numbers)


def _operand(text: str, numbers: dict[str, int]) -> int:
    return int(text) if text.isdigit() else numbers[text]


def _step_values(kind: Kind, numbers: dict[str, int]) -> list[int]:
    """Adds the results to ``numbers``; empty when one is not whole."""
    values: list[int] = []
    for step in [*kind.given, *kind.steps]:
        value = _operand(step.terms[0], numbers)
        for operator, operand in zip(step.terms[1::2], step.terms[2::2], strict=True):
            try:
                value = apply(value, operator, _operand(operand, numbers))
            except ValueError:
                return []
        numbers[step.name] = value
        values.append(value)
    return values[len(kind.given) :] if min(values) >= 2 else []


def make_problem(
    kind: Kind, rng: random.Random, *, held_out: bool, scale: int, max_value: int, taught: bool = False
) -> Problem:
    """``taught``: with the frames of training alone."""
    numbers, values = draw_numbers(kind, rng, scale, max_value)
    frames = kind.held_out if held_out else kind.frames + kind.also if taught else kind.frames
    index = rng.randrange(len(frames))
    slots = Slots(rng)
    text = reworded(frames[index], frames, rng) if taught else frames[index]
    if not kind.plain and "{name}" in text and rng.random() < 0.1:
        text = with_distractor(text, rng)
    words = not kind.plain and rng.random() < 0.25
    question = fill(text, numbers, slots, rng, words)
    steps = []
    for rule, value in zip(kind.steps, values, strict=True):
        terms = tuple(str(_operand(term, numbers)) if term not in "+-*/" else term for term in rule.terms)
        sentence = rng.choice(rule.sentences).replace("{=}", show(list(terms)))
        steps.append(Step(terms, value, fill(sentence, numbers, slots, rng, False)))
    combination = " ".join([kind.name + kind.shape, *(f"{draw.name}={numbers[draw.name]}" for draw in kind.draws)])
    frame = f"{kind.name}/{'new' if held_out else 'ask'}{index}"
    return Problem(kind.name, frame, combination, question, tuple(steps))


def reworded(frame: str, frames: list[str], rng: random.Random) -> str:
    """Other wordings than those of the frames, now and then."""
    if rng.random() < SPLICED:
        others = rng.sample(frames, min(NUM_SPLICED, len(frames)))
        frame = spliced(expand(frame, rng), [expand(other, rng) for other in others], rng)
    return with_lost_words(expand(frame, rng), rng) if rng.random() < LOSSY else frame


def with_distractor(text: str, rng: random.Random) -> str:
    """A fact that has nothing to do with it, before the last sentence."""
    fact = rng.choice(_DISTRACTORS).replace("{x}", str(rng.randint(3, 12)))
    head, stop, question = text.rpartition(". ")
    return f"{head}{stop}{fact} {question}" if stop else f"{fact} {text}"


def expand(text: str, rng: random.Random) -> str:
    """Each ``[x|y]`` becomes x or y, inner ones first."""
    while found := _CHOICE.search(text):
        text = text[: found.start()] + rng.choice(found[1].split("|")) + text[found.end() :]
    return re.sub(" +", " ", text).replace(" ,", ",").replace(" .", ".").strip()


def fill(text: str, numbers: dict[str, int], slots: Slots, rng: random.Random, words: bool) -> str:
    """Slots and numbers into a frame; ``words`` writes numbers up to twelve as words."""
    text = expand(text, rng)

    def value(found: re.Match[str]) -> str:
        slot = found[1]
        name, _, form = slot.partition("_")
        if name not in numbers or form not in ("", "times", "frac"):  # {a_shirt} is no form of the number a
            return slots.fill(slot)
        number = numbers[name]
        if form == "times":
            return "twice" if number == 2 else f"{_in_words(number)} times"
        if form == "frac":
            return FRACTION_WORDS[number]
        beside = found.string[max(0, found.start() - 1) : found.start()] + found.string[found.end() : found.end() + 1]
        spoken = words and 2 <= number <= 12 and not set("$%:/-") & set(beside)
        if not spoken:
            return str(number)
        starts = found.start() == 0 or found.string[: found.start()].rstrip().endswith((".", "?", "!"))
        return NUMBER_WORDS[number].capitalize() if starts else NUMBER_WORDS[number]

    return _BEGINNING.sub(lambda found: found[0].upper(), _SLOT.sub(value, text))


def _in_words(number: int) -> str:
    return NUMBER_WORDS[number] if number <= 12 else str(number)
