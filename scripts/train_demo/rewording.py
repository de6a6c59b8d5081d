"""More wordings of a training question than there are frames: sentences of one frame in another, lost words.

With the frames alone the model learns where in a frame a number stands; in a new wording it then takes the wrong one.
Only questions of training are changed, never those of a test.
"""

import random
import re
from collections.abc import Sequence

SPLICED = 0.5  # share of the questions of training
NUM_SPLICED = 5  # frames that sentences are taken from
LOSSY = 0.12
LOST_WORDS = 0.12  # of such a question's words that may be lost
_SENTENCE_END = re.compile(r"(?<=[.?!]) (?=[\w{\"$])")
_SLOT = re.compile(r"\{(\w+)\}")
_TASK = re.compile(r"\?$|^(Find|Tell|Say|Calculate|Work|Determine|Compute|Give|Count|Add|Figure|Wait|We want|Let us)\b")
Place = tuple[frozenset[str], str, bool, bool]  # slots, last character, last sentence, task before it
# Without them a question would mean something else.
_NEEDED = re.compile(
    r"a|an|no|not|none|nobody|more|most|fewer|less|least|than|as|half|twice|double|times|each|every|per|apiece|"
    r"both|one|first|second|third|last|next|before|after|then|ago|now|old|older|young|younger|left|rest|remaining|"
    r"remain|others|all|other|another|total|percent|of|off|and|or|but|only|without|if|was|is|are|were|how|many|"
    r"much|what",
    re.IGNORECASE,
)


def spliced(frame: str, others: Sequence[str], rng: random.Random) -> str:
    """``frame`` with some of its sentences taken from ``others`` of the same kind: those that hold the same numbers and
    people. All frames of a kind ask for the same, so the question may be another's. No choice ``[x|y]`` may be left."""
    sentences = _sentences(frame)
    pool: dict[Place, list[str]] = {}
    for other in others:
        for place, sentence in _placed(_sentences(other)):
            pool.setdefault(place, []).append(sentence)
    return " ".join(
        rng.choice(pool[place]) if place in pool and rng.random() < 0.5 else sentence
        for place, sentence in _placed(sentences)
    )


def _placed(sentences: list[str]) -> list[tuple[Place, str]]:
    """A fact takes no question's place, nor the last sentence that of one before: it may be where the task is set."""
    last = len(sentences) - 1
    set_before = any(_TASK.search(sentence) for sentence in sentences[:-1])
    return [
        ((_slots(sentence), sentence[-1], index == last, set_before), sentence)
        for index, sentence in enumerate(sentences)
    ]


def _sentences(frame: str) -> list[str]:
    return [frame] if '"' in frame else _SENTENCE_END.split(frame)  # a speech is not taken apart


def _slots(sentence: str) -> frozenset[str]:
    """What a sentence tells of: its numbers and people, however they are called (``a`` and ``a_times``, he and his)."""
    return frozenset(_base(slot.lower()) for slot in _SLOT.findall(sentence))


def _base(slot: str) -> str:
    slot = slot.removesuffix("_times").removesuffix("_frac").removesuffix("_one").removeprefix("a_")
    return re.sub(r"^(he|his|him)(?=\d*$)", "name", slot)


def with_lost_words(frame: str, rng: random.Random) -> str:
    """Some words are gone, as unknown words would be; none of those that change what is asked."""
    kept = [word for word in frame.split(" ") if not (_may_be_lost(word) and rng.random() < LOST_WORDS)]
    return " ".join(kept)


def _may_be_lost(word: str) -> bool:
    return word.isalpha() and not _NEEDED.fullmatch(word)
