"""Reworded questions of training: they still ask for the same, of the same numbers."""

import itertools
import random
import re
from collections import Counter

import pytest
import template
from generator import problems, text_kinds
from rewording import spliced, with_lost_words
from template import Kind, expand

TASK = re.compile(r"\?|\b(find|give|tell|calculate|work out|determine|compute|say|count|add|figure)\b", re.IGNORECASE)
FRAME = "{name} has {a} {thing}. {name2} has {b} more. How many do they have?"
OTHERS = ("On {day} {name} found {a} pins. How many are {name}'s? {name2} got {b} more than {him}. What is the total?",)


def numbers_of(kind: Kind, text: str) -> Counter[str]:
    drawn = {draw.name for draw in kind.draws} | {rule.name for rule in kind.given}
    names = (slot.removesuffix("_times").removesuffix("_frac") for slot in re.findall(r"\{(\w+)\}", text))
    return Counter(name for name in names if name in drawn)


def test_a_mixed_question_has_all_numbers_of_its_kind() -> None:
    rng = random.Random(1)
    changed = without_task = 0
    for kind in text_kinds():
        frames = [expand(frame, rng) for frame in kind.frames + kind.also]
        for frame in frames:
            mixed = spliced(frame, rng.sample(frames, 5), rng)
            changed += mixed != frame
            assert set(numbers_of(kind, mixed)) == set(numbers_of(kind, frame)), (kind.name, mixed)
            without_task += bool(TASK.search(frame)) and not TASK.search(mixed)
    assert changed > 1_000
    assert without_task <= 3  # "{n} years ago, {name2} joined a club. ..." in front of facts alone


def test_sentences_come_from_the_others_where_they_tell_of_the_same() -> None:
    other = "{name2} has {b} more than {him}. {A_thing} is nice, and {name} owns {a}. What is the total?"
    mixed = {spliced(FRAME, [other], random.Random(seed)) for seed in range(40)}
    facts = ("{name} has {a} {thing}. ", "{name2} has {b} more. ")
    questions = ("How many do they have?", "What is the total?")
    # The fact with {a} names things in the one and {A_thing} in the other: the same slot. {b}'s tells of {name} too.
    first = (facts[0], "{A_thing} is nice, and {name} owns {a}. ")
    assert mixed == {start + facts[1] + question for start in first for question in questions}


def test_a_fact_never_takes_the_place_of_a_question() -> None:
    frame, other = "{name} has {a}. How many is that?", "How many is that? {name} has {a}."
    assert {spliced(frame, [other], random.Random(seed)) for seed in range(20)} == {frame}
    told = "Find {name}'s number. {name} has {a}."
    assert {spliced(told, [frame, "{name} has {a}. {name} counts."], random.Random(seed)) for seed in range(20)} == {
        told
    }


def test_a_speech_stays_whole() -> None:
    speech = '"I have {a}. You have {b}," says {name}. How many is that?'
    parts = ["{name} has {a}. How much?", "I have {b}. How many is that in all?"]
    assert {spliced(speech, parts, random.Random(seed)) for seed in range(20)} == {speech}


def test_lost_words_are_never_those_that_say_what_is_asked() -> None:
    frame = "In {month}, {name} happily sold half as many {thing} as {name2}, who sold {a}, not more than ${b} each."
    seen = {with_lost_words(frame, random.Random(seed)) for seed in range(300)}
    assert frame in seen
    lost = Counter(frame.split()) - Counter(min(seen, key=len).split())
    assert len(lost) > 1
    assert set().union(*(set(frame.split()) - set(text.split()) for text in seen)) == {"In", "happily", "sold", "who"}


@pytest.mark.parametrize("share", ["SPLICED", "LOSSY"])
def test_only_the_questions_of_training_are_reworded(share: str, monkeypatch) -> None:
    def asked(split: str, taught: bool) -> list[str]:
        return [problem.question for problem in itertools.islice(problems(split, "1", taught), 60)]

    tests = [asked(split, False) for split in ("train", "seen", "new_frames")]
    training = asked("train", True)
    monkeypatch.setattr(template, share, 0.0)
    assert [asked(split, False) for split in ("train", "seen", "new_frames")] == tests
    assert asked("train", True) != training
