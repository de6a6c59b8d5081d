"""Calls of tools in an answer: whole, cut off, malformed, and the same however the text arrives."""

import json
import random
from typing import Any

import pytest

from splitrank.serving.text.marked_text import MarkerFinder
from splitrank.serving.text.thinking import ThinkingSplitter
from splitrank.serving.text.tool_calls import CALL_OPENING, CallForm, ToolCallParser

FORM = CallForm(
    {"write": {"path": ("string",), "text": ("string",), "mode": ("integer",), "maybe": ("string", "null")}}
)
Calls = list[tuple[str, str]]
PROGRAM = '  def f():\n\treturn "\\n"\n\n'
TAGS = "a <b> </parameter> c\n</function> d"
OPEN_F = "<tool_call>\n<function=f>\n"
X_IS_1, CLOSE = "<parameter=x>\n1\n</parameter>\n", "</function>\n</tool_call>"


def call(name: str, **values: str) -> str:
    """As Qwen's template writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def parse(pieces: list[str], form: CallForm = FORM, is_cut: bool = False) -> tuple[str, Calls]:
    """Text, and name and arguments of each call."""
    parser = ToolCallParser(form)
    text, calls = "", list[tuple[str, str]]()
    for piece in [*pieces, None]:
        if piece is None:
            parser.finish(is_cut)
        else:
            parser.push(piece)
        added, deltas = parser.take()
        text += added
        for delta in deltas:
            if delta.name is not None:
                calls.append((delta.name, ""))
            assert delta.call == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return text, calls


def parse_all_ways(text: str, form: CallForm = FORM, is_cut: bool = False) -> tuple[str, list[tuple[str, Any]]]:
    """Whole, letter by letter, and in random pieces: the same. Arguments as values, unless the text is cut."""
    whole = parse([text], form, is_cut)
    assert parse(list(text), form, is_cut) == whole
    for seed in range(20):
        generator = random.Random(seed)
        cuts = sorted(generator.choices(range(len(text) + 1), k=6))
        assert parse([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], form, is_cut) == whole
    return whole[0], [(name, arguments if is_cut else json.loads(arguments)) for name, arguments in whole[1]]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("plain text \n", "plain text \n", []),
        (call("f"), "", [("f", {})]),
        (call("write", path="a.py", mode="420"), "", [("write", {"path": "a.py", "mode": 420})]),
        ("Let me look.\n\n" + call("f", x="1"), "Let me look.", [("f", {"x": 1})]),
        (call("f") + "\n" + call("g", x="y") + "\n", "", [("f", {}), ("g", {"x": "y"})]),
        ("a " + call("f") + "\n\nb" + call("g") + "\n c ", "a\n\nb\n\nc ", [("f", {}), ("g", {})]),
        (call("write", text=PROGRAM), "", [("write", {"text": PROGRAM})]),
        (call("write", text="\n\nx"), "", [("write", {"text": "\n\nx"})]),
        (call("write", text="", path=""), "", [("write", {"text": "", "path": ""})]),
        (call("write", text="Grüße 世界 🦊"), "", [("write", {"text": "Grüße 世界 🦊"})]),
        (call("write", text="123", maybe="null"), "", [("write", {"text": "123", "maybe": None})]),
        (call("write", text=TAGS), "", [("write", {"text": TAGS})]),
        (call("write", text="<tool_call>\n<function=g>\n"), "", [("write", {"text": "<tool_call>\n<function=g>\n"})]),
        # What a model may leave out: the tags' line breaks, a parameter's end, the call's end.
        ("<tool_call><function=f><parameter=x>1</parameter></function></tool_call>", "", [("f", {"x": 1})]),
        ("<tool_call>\n<function=f>\n<parameter=x>\na\n</function>\n</tool_call>", "", [("f", {"x": "a"})]),
        ("<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</tool_call>", "", [("f", {"x": 1})]),
        ("<tool_call>\n<function=f>\n</function>", "", [("f", {})]),
        ("<tool_call>\n<function=f>\n</function>\n<function=g>\n</function>\n</tool_call>", "", [("f", {}), ("g", {})]),
        ("<tool_call>\n<function=f>\n<parameter=x>\n1", "", [("f", {"x": 1})]),  # the model ended here itself
        # What it may add.
        (OPEN_F + "well\n" + X_IS_1 + CLOSE, "", [("f", {"x": 1})]),
        (OPEN_F + "<parameter=\n>\n1\n</parameter>\n" + CLOSE, "", [("f", {})]),
        (OPEN_F + X_IS_1 + X_IS_1.replace("1", "2") + CLOSE, "", [("f", {"x": 1})]),
    ],
)  # fmt: skip
def test_calls(text: str, said: str, calls: list[tuple[str, Any]]) -> None:
    assert parse_all_ways(text) == (said, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call>\n<function=a\nb>\n</function>\n</tool_call>",
        "<tool_call>\n<function=" + "x" * 300 + ">\n</function>",
        "<tool_call>\n<func",
        "<tool_call>\n<function=f",
        "a < b <tool",
        "<function=f>\n</function>",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    assert parse_all_ways("Say: " + text) == ("Say: " + text, [])
    said, calls = parse_all_ways(text + "\n" + call("f"))
    if text not in ("<tool_call>\n<func", "<tool_call>\n<function=f", "a < b <tool"):
        assert (said, calls) == (text, [("f", {})])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<tool_call>\n<function=write>\n", ""),
        ("<tool_call>\n<function=write>\n<parameter=te", ""),
        ("<tool_call>\n<function=write>\n<parameter=text>\nab", '{"text": "ab'),
        ("<tool_call>\n<function=write>\n<parameter=text>\nab\n", '{"text": "ab'),
        ("<tool_call>\n<function=write>\n<parameter=mode>\n42", '{"mode": '),
        ("<tool_call>\n<function=write>\n<parameter=mode>\n42\n</parameter>\n<par", '{"mode": 42'),
        ("<tool_call>\n<function=write>\n</function>\n</tool_c", "{}"),
    ],
)
def test_a_call_that_is_cut_off_is_not_made_whole(text: str, arguments: str) -> None:
    assert parse_all_ways(text, is_cut=True) == ("", [("write", arguments)])


def test_name_first_then_arguments_as_they_come() -> None:
    parser = ToolCallParser(FORM)
    seen = []
    for piece in ("<tool_call>\n<function=wri", "te>\n", "<parameter=text>\n", "one ", "two", "\n</parameter>\n"):
        parser.push(piece)
        seen.append([(delta.name, delta.arguments) for delta in parser.take()[1]])
    assert seen == [[], [("write", "")], [(None, '{"text": "')], [(None, "one ")], [(None, "two")], []]
    assert parser.is_inside_call


def test_only_one_call() -> None:
    parser = ToolCallParser(CallForm(one_only=True))
    parser.push("a" + call("f", x="1")[: -len("\n</tool_call>")])
    assert parser.has_ended
    parser.push(call("g"))
    assert [delta.name for delta in parser.take()[1]] == ["f", None]


def test_a_call_inside_an_open_thought_ends_it() -> None:
    text = "I call <tool_call> now.\n" + call("f")
    for pieces in ([text], list(text)):
        splitter = ThinkingSplitter(True, CALL_OPENING)
        steps = [splitter.push(piece) for piece in pieces]
        assert "".join(step[0] for step in steps) == "I call <tool_call> now."
        assert "".join(step[1] for step in steps) == call("f")
        assert not splitter.is_thinking


def test_the_work_is_linear_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes, what was looked at is not looked at again, but for the beginning of a tag."""
    looked_at: list[int] = []
    push = MarkerFinder.push

    def counted(self: MarkerFinder, text: str) -> tuple[str, str | None, str]:
        looked_at.append(len(self._held) + len(text))
        return push(self, text)

    monkeypatch.setattr(MarkerFinder, "push", counted)
    for piece in (" ", "\n", "<", "<tool_call>", "</parameter>", "</parameter>\n", "x"):
        for opening in ("", "<tool_call>\n<function=write>\n<parameter=text>\n", OPEN_F + "<parameter=x>"):
            parser = ToolCallParser(FORM)
            parser.push(opening)
            looked_at.clear()
            for _ in range(1000):
                parser.push(piece)
            parser.finish(False)
            assert sum(looked_at) < 1000 * (len(piece) + len("</parameter>"))
