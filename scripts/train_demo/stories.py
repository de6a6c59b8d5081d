"""Problems of any length, composed step by step: chains of people, boxes that fill and empty, shopping, a working week.

A composer returns a ``Kind`` as the text templates do: its draws, one frame, one step for each event. The sentences
are in stories.txt, several for each event; the held-out frame tells the same events in sentences that training never
sees.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from template import Draw, Kind, StepRule

Composer = Callable[[random.Random, int], Kind]
Event = Callable[["_Tale", str], str]


def _read_sentences(path: Path) -> dict[str, dict[str, list[str]]]:
    """By name: those of training and test (``ask``), of training alone (``also``) and of the test alone (``new``)."""
    sentences: dict[str, dict[str, list[str]]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").replace("\n  ", " ").splitlines():
        if line.startswith(" "):
            word, _, sentence = line.strip().partition(" ")
            sentences[name][word].append(sentence)
        elif line and not line.startswith("#"):
            name = line
            sentences[name] = {"ask": [], "also": [], "new": []}
    return sentences


_SENTENCES = _read_sentences(Path(__file__).with_name("stories.txt"))


@dataclass
class _Tale:
    """A kind in the making: every sentence three times, for each of its frames."""

    kind: Kind
    rng: random.Random
    told: dict[str, list[str]] = field(default_factory=lambda: {"ask": [], "new": [], "also": []})

    @property
    def length(self) -> int:
        return len(self.kind.steps)

    def draw(self, low: int, high: int) -> str:
        """The name of a new number."""
        name = f"n{len(self.kind.draws)}"
        self.kind.draws.append(Draw(name, low, high))
        return name

    def say(self, sentence: str, **places: str) -> None:
        """``places``: a number's name for ``n`` and ``m``, a slot like ``{name2}`` for the others."""
        known = _SENTENCES[sentence]
        # The wordings of training alone are drawn apart: with more of them the tests stay what they are.
        apart = random.Random(f"{sentence}/{self.told['ask']}")
        for word, told in self.told.items():
            text = apart.choice(known["ask"] + known["also"]) if word == "also" else self.rng.choice(known[word])
            for place, filling in places.items():
                if filling.startswith("{"):
                    text = text.replace(f"{{{place}}}", filling)
                else:
                    text = text.replace(f"{{{place}}}", f"{{{filling}}}")
                    text = text.replace(f"{{{place}_times}}", f"{{{filling}_times}}")
            told.append(text)

    def step(self, terms: str, *sentences: str) -> str:
        """The name of its value."""
        name = f"s{len(self.kind.steps)}"
        self.kind.steps.append(StepRule(name, tuple(terms.split()), sentences))
        return name

    def end(self, question: str, **places: str) -> Kind:
        self.say(question, **places)
        self.kind.frames, self.kind.held_out, self.kind.also = ([" ".join(told)] for told in self.told.values())
        return self.kind


def _people(rng: random.Random, length: int, name: str) -> tuple[_Tale, list[str]]:
    """(tale, values of the people): each is compared with the one before."""
    tale = _Tale(Kind(name), rng)
    values = [tale.draw(4, 40)]
    tale.say("chain_start", n=values[0])
    for index in range(2, length + 2):
        whom = "{name}" if index == 2 else f"{{name{index - 1}}}"
        values.append(_relation(tale, rng, f"{{name{index}}}", whom, values[-1]))
    return tale, values


def _relation(tale: _Tale, rng: random.Random, who: str, whom: str, value: str) -> str:
    relation = rng.choice(("times", "more", "more", "fewer", "half"))
    tale.kind.shape += f"-{relation}"
    if relation == "half":
        tale.say("half", who=who, whom=whom)
        return tale.step(f"{value} / 2", f"{who} has {{=}} {{thing}}.", f"Half of that is {{=}} {{thing}} for {who}.")
    number = tale.draw(2, 4) if relation == "times" else tale.draw(2, 20)
    tale.say(relation, who=who, whom=whom, n=number)
    sign = {"times": "*", "more": "+", "fewer": "-"}[relation]
    return tale.step(
        f"{value} {sign} {number}", f"{who} has {{=}} {{thing}}.", f"For {who} that makes {{=}} {{thing}}."
    )


def chain_last(rng: random.Random, length: int) -> Kind:
    tale, values = _people(rng, length, "chain_last")
    return tale.end("chain_last", who=f"{{name{len(values)}}}")


def chain_total(rng: random.Random, length: int) -> Kind:
    tale, values = _people(rng, max(1, length - 1), "chain_total")
    tale.step(" + ".join(values), "Together they have {=} {thing}.", "All of them have {=} {thing}.")
    return tale.end("chain_total")


def chain_gap(rng: random.Random, length: int) -> Kind:
    tale, values = _people(rng, max(2, length - 1), "chain_gap")
    last = f"{{name{len(values)}}}"
    tale.step(f"{values[-1]} - {values[0]}", f"{last} has {{=}} more than {{name}}.", "The difference is {=}.")
    return tale.end("chain_gap", who=last)


def _events(
    tale: _Tale, rng: random.Random, length: int, value: str, short: tuple[Event, ...], long: tuple[Event, ...]
) -> None:
    """Until there are ``length`` steps: a short event makes one, a long one two."""
    while tale.length < length:
        event = rng.choice(short if length - tale.length == 1 else long)
        tale.kind.shape += event.__name__
        value = event(tale, value)


def box_story(rng: random.Random, length: int) -> Kind:
    """Things come and go."""
    tale = _Tale(Kind("box_story"), rng)
    start = tale.draw(10, 80)
    tale.say("box_start", n=start)
    _events(tale, rng, length, start, (_gain, _loss, _double), (_gain, _loss, _packs, _gifts))
    return tale.end("box_end")


def _gain(tale: _Tale, value: str) -> str:
    number = tale.draw(3, 40)
    tale.say("gain", n=number)
    return tale.step(f"{value} + {number}", "{He} then has {=} {thing}.", "That makes {=} {thing}.")


def _loss(tale: _Tale, value: str) -> str:
    number = tale.draw(3, 30)
    tale.say("loss", n=number)
    return tale.step(f"{value} - {number}", "{He} then has {=} {thing}.", "That leaves {=} {thing}.")


def _double(tale: _Tale, value: str) -> str:
    tale.say("double")
    return tale.step(f"{value} * 2", "Doubled that is {=} {thing}.", "Twice as many is {=} {thing}.")


def _packs(tale: _Tale, value: str) -> str:
    packs, each = tale.draw(2, 9), tale.draw(2, 12)
    tale.say("packs", n=packs, m=each)
    new = tale.step(f"{packs} * {each}", "The {box} hold {=} {thing}.", "In the {box} there are {=} {thing}.")
    return tale.step(f"{value} + {new}", "{He} then has {=} {thing}.", "That makes {=} {thing}.")


def _gifts(tale: _Tale, value: str) -> str:
    people, each = tale.draw(2, 6), tale.draw(2, 6)
    tale.say("gifts", n=people, m=each)
    gone = tale.step(f"{people} * {each}", "{He} gives away {=} {thing}.", "The gifts are {=} {thing}.")
    return tale.step(f"{value} - {gone}", "{He} then has {=} {thing}.", "That leaves {=} {thing}.")


def _purchases(rng: random.Random, length: int, name: str) -> tuple[_Tale, str, int]:
    """(tale, name of the total, its bound)."""
    tale = _Tale(Kind(name), rng)
    costs: list[str] = []
    for index in range(1, max(2, length - 1) + 1):
        goods, number, price = f"{{goods{index}}}", tale.draw(2, 9), tale.draw(2, 12)
        tale.say("purchase" if costs else "first_purchase", what=goods, n=number, m=price)
        costs.append(tale.step(f"{number} * {price}", f"The {goods} cost {{=}} dollars."))
    total = tale.step(" + ".join(costs), "Together that is {=} dollars.", "In all it costs {=} dollars.")
    return tale, total, len(costs) * 108


def shopping_total(rng: random.Random, length: int) -> Kind:
    tale, _, _ = _purchases(rng, length, "shopping_total")
    return tale.end("shopping_total")


def shopping_change(rng: random.Random, length: int) -> Kind:
    tale, total, bound = _purchases(rng, length - 1, "shopping_change")
    money = tale.draw(60, bound)
    tale.say("shopping_money", n=money)
    for told in tale.told.values():
        told.insert(0, told.pop())
    tale.step(f"{money} - {total}", "{name} has {=} dollars left.", "That leaves {=} dollars.")
    return tale.end("shopping_change")


def working_week(rng: random.Random, length: int) -> Kind:
    """Days compared with each other, then added."""
    tale = _Tale(Kind("working_week"), rng)
    values = [tale.draw(4, 30)]
    tale.say("week_start", n=values[0])
    for index in range(2, max(2, min(length, 7)) + 1):  # a week has seven days
        before = "{day}" if index == 2 else f"{{day{index - 1}}}"
        values.append(_day(tale, rng, f"{{day{index}}}", before, values[-1]))
    tale.step(" + ".join(values), "On all these days that is {=} {food}.", "Together {name} sells {=} {food}.")
    return tale.end("week_end")


def _day(tale: _Tale, rng: random.Random, day: str, before: str, value: str) -> str:
    relation = rng.choice(("times", "times", "more", "fewer"))
    tale.kind.shape += f"-{relation}"
    number = tale.draw(2, 3) if relation == "times" else tale.draw(2, 15)
    tale.say(f"day_{relation}", who=day, whom=before, n=number)
    sign = {"times": "*", "more": "+", "fewer": "-"}[relation]
    return tale.step(f"{value} {sign} {number}", f"On {day} that is {{=}} {{food}}.", f"{{He}} sells {{=}} on {day}.")


def budget(rng: random.Random, length: int) -> Kind:
    """Money comes and goes."""
    tale = _Tale(Kind("budget"), rng)
    start = tale.draw(20, 120)
    tale.say("budget_start", n=start)
    _events(tale, rng, length, start, (_spend, _receive), (_spend, _receive, _work, _buy_some))
    return tale.end("budget_end")


def _spend(tale: _Tale, value: str) -> str:
    number = tale.draw(3, 30)
    tale.say("spend", n=number)
    return tale.step(f"{value} - {number}", "{He} then has {=} dollars.", "That leaves {=} dollars.")


def _receive(tale: _Tale, value: str) -> str:
    number = tale.draw(3, 40)
    tale.say("receive", n=number)
    return tale.step(f"{value} + {number}", "{He} then has {=} dollars.", "That makes {=} dollars.")


def _work(tale: _Tale, value: str) -> str:
    hours, wage = tale.draw(2, 9), tale.draw(3, 15)
    tale.say("work", n=hours, m=wage)
    earned = tale.step(f"{hours} * {wage}", "The work brings {=} dollars.", "{He} earns {=} dollars.")
    return tale.step(f"{value} + {earned}", "{He} then has {=} dollars.", "That makes {=} dollars.")


def _buy_some(tale: _Tale, value: str) -> str:
    goods, number, price = f"{{goods{tale.length + 1}}}", tale.draw(2, 6), tale.draw(2, 9)
    tale.say("buy_some", what=goods, n=number, m=price)
    cost = tale.step(f"{number} * {price}", f"The {goods} cost {{=}} dollars.")
    return tale.step(f"{value} - {cost}", "{He} then has {=} dollars.", "That leaves {=} dollars.")


COMPOSERS: tuple[Composer, ...] = (
    chain_last,
    chain_total,
    chain_gap,
    box_story,
    shopping_total,
    shopping_change,
    working_week,
    budget,
)
