"""Thoughts and answer come out the same however the text arrives, and nothing of either is lost."""

import random

import pytest

from splitrank.serving.text.thinking import ThinkingSplitter, ends_inside_thinking


def split(pieces: list[str], thinking: bool = True) -> tuple[str, str]:
    splitter = ThinkingSplitter(thinking)
    steps = [splitter.push(piece) for piece in pieces]
    reasoning = "".join(step[0] for step in steps) + splitter.finish()
    return reasoning, "".join(step[1] for step in steps)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("a thought\n</think>\n\nAn answer.", "a thought", "An answer."),
        ("\n\na\n\nb\n\n\n</think>\n\n  indented\n\nend\n", "a\n\nb", "  indented\n\nend\n"),
        ("cut off", "cut off", ""),
        ("cut off\n", "cut off", ""),
        ("cut off</thi", "cut off</thi", ""),
        ("1 < 2 </ think></think>yes", "1 < 2 </ think>", "yes"),
        ("\n</think>\n\nNo thought.", "", "No thought."),
        ("</think>", "", ""),
        ("a</think>b</think>c", "a", "b</think>c"),
        ("", "", ""),
    ],
)
def test_thoughts_and_answer(text: str, reasoning: str, answer: str) -> None:
    assert split([text]) == split(list(text)) == (reasoning, answer)
    assert split(list(text), thinking=False) == ("", text)


def test_splits_do_not_matter() -> None:
    for seed in range(500):
        generator = random.Random(seed)
        text = "".join(generator.choices(["\n", "a", " ", "<", "</think>", "</thi", "nk>"], k=generator.randrange(12)))
        cuts = sorted(generator.sample(range(len(text) + 1), generator.randrange(min(len(text), 8) + 1)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        before, closed, behind = text.partition("</think>")
        assert split(pieces) == split([text]) == (before.strip("\n"), behind.lstrip("\n") if closed else "")


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("what is <think>?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<think>\nold\n</think>\n\nhi<|im_end|>\n<|im_start|>assistant\n<think>\nhalf a thou", True),
        ("no thoughts here", False),
    ],
)
def test_where_a_prompt_ends(prompt: str, inside: bool) -> None:
    assert ends_inside_thinking(prompt) is inside
