"""The vocabularies that slots like ``{name}`` and ``{thing2}`` are filled from."""

import random
import re
from pathlib import Path

# Never counted.
_SAME_PLURAL = {
    *("month", "day", "shop", "place", "town", "color", "machine", "job", "relative", "wish", "liquid", "powder")
}


def read_lists(path: Path, separator: str) -> dict[str, list[str]]:
    """Lines ``name: one, two``; a line that begins with a space continues the one before."""
    lines = path.read_text(encoding="utf-8").replace("\n ", " ").splitlines()
    pairs = (line.partition(": ") for line in lines if line and not line.startswith("#"))
    return {name: [item.strip() for item in items.split(separator)] for name, _, items in pairs}


def _pair(word: str, slot: str) -> tuple[str, str]:
    one, colon, many = word.partition(":")
    if slot in _SAME_PLURAL:
        return one, one
    return one, many if colon else one + "s"


_LISTS = read_lists(Path(__file__).with_name("words.txt"), ",")
NAMES_SHE, NAMES_HE = _LISTS.pop("names_she"), _LISTS.pop("names_he")
NOUNS = {slot: [_pair(word, slot) for word in words] for slot, words in _LISTS.items()}
NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_SLOT = re.compile(r"(a_)?([a-z]+)(\d*)(_one)?")
_FORMS = ("he", "his", "him")
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}
FRACTION_WORDS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}


class Slots:
    """Fills slots, each name once and the same for one problem; ``{thing}`` and ``{thing2}`` differ.

    ``{name2}`` is a second person, ``{he2} {his2} {him2}`` theirs; ``{thing_one}`` is one of ``{thing}``. ``{He}`` and
    ``{A_thing}`` (capitals) begin a sentence, ``{a_thing}`` brings its article.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._filled: dict[str, tuple[str, str]] = {}
        self._people: dict[str, tuple[str, str]] = {}

    def fill(self, slot: str) -> str:
        """KeyError when there is no such slot."""
        text = self._fill(slot.lower())
        return text[0].upper() + text[1:] if slot[0].isupper() else text

    def _fill(self, slot: str) -> str:
        parts = _SLOT.fullmatch(slot)
        if not parts:
            raise KeyError(slot)
        article, base, number, one = parts.groups()
        if base == "name":
            return self._person(number)[0]
        if base in _FORMS:
            return PRONOUNS[self._person(number)[1]][_FORMS.index(base)]
        single, many = self._noun(base, number)
        if article:
            return ("an " if single[0] in "aeiou" else "a ") + single
        return single if one else many

    def _person(self, number: str) -> tuple[str, str]:
        if number not in self._people:
            taken = {name for name, _ in self._people.values()}
            sex = self._rng.choice(("she", "he"))
            names = NAMES_SHE if sex == "she" else NAMES_HE
            self._people[number] = (self._rng.choice([name for name in names if name not in taken]), sex)
        return self._people[number]

    def _noun(self, base: str, number: str) -> tuple[str, str]:
        if base + number not in self._filled:
            taken = set(self._filled.values())
            self._filled[base + number] = self._rng.choice([pair for pair in NOUNS[base] if pair not in taken])
        return self._filled[base + number]
