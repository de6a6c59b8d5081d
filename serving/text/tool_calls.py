"""Qwen's tool calls in a text that comes piece by piece: their names, and their arguments as JSON.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

A call is told as soon as its name is read, and its arguments as they come. What only begins like one is text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from splitrank.serving.text.argument_types import Types, argument_json, is_text
from splitrank.serving.text.tag_reader import Reading, TagReader

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
CALL_OPENING = f"{CALL}\n{FUNCTION}"  # as templates write it
# What must stand behind the end of a value; otherwise the tag is part of it: a program about such calls, say.
_BEHIND_VALUE = {PARAMETER_END: (PARAMETER, FUNCTION_END, CALL_END), FUNCTION_END: (CALL_END,)}


@dataclass(frozen=True)
class CallForm:
    """``types``: of each tool's parameters, by names. ``one_only``: the answer ends with its first call."""

    types: dict[str, dict[str, Types]] = field(default_factory=dict)
    one_only: bool = False


class CallDelta(NamedTuple):
    """What call number ``call`` of an answer gains: first its ``name``, then pieces of its ``arguments``' JSON."""

    call: int
    name: str | None
    arguments: str


class ToolCallParser:
    """``push`` pieces of an answer, ``finish`` it, and ``take`` what has come of it."""

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._reader = TagReader()
        self._text = _AnswerText()
        self._deltas: list[CallDelta] = []
        self.num_calls = 0
        self._is_cut = False
        self.is_inside_call = False
        self.is_in_text = True  # not behind the opening tag of a call, nor of what only begins like one
        self.has_ended = False  # by the text's end, or by the only call that is allowed
        self._reading = self._answer()
        next(self._reading)

    def push(self, piece: str) -> None:
        if piece and not self.has_ended:
            self._read(piece)

    def finish(self, is_cut: bool) -> None:
        """No more comes. ``is_cut``: not by the model's own will, so a call that is open stays open."""
        self._is_cut = is_cut
        if not self.has_ended:
            self._read(None)

    def take(self) -> tuple[str, list[CallDelta]]:
        """Text and calls since the last time."""
        deltas, self._deltas = self._deltas, []
        return self._text.take(), deltas

    def _read(self, piece: str | None) -> None:
        try:
            self._reading.send(piece)
        except StopIteration:
            self.has_ended = True

    # -------------------------------------------------------------- the grammar, from the top

    def _answer(self) -> Reading[None]:
        while not (self._form.one_only and self.num_calls):
            self.is_in_text = True
            found = yield from self._reader.until((CALL,), self._text.add)
            if found is None:
                break
            self.is_in_text = False
            spaces, found = yield from self._reader.behind_spaces((FUNCTION,))
            name = (yield from self._reader.name()) if found else None
            if name is None:
                self._text.add(CALL + spaces + (found or ""))
            else:
                yield from self._calls(name)
        self._text.end()

    def _calls(self, name: str | None) -> Reading[None]:
        """From behind a function's name to the end of the call; some models put several functions into one."""
        while name is not None:
            yield from self._function(name)
            if self.is_inside_call or self._form.one_only:
                return
            _, found = yield from self._reader.behind_spaces((CALL_END, FUNCTION))
            name = (yield from self._reader.name()) if found == FUNCTION else None
        if self._reader.has_ended and CALL_END.startswith(self._reader.rest):
            self._reader.rest = ""  # cut off inside the last tag

    def _function(self, name: str) -> Reading[None]:
        self._text.begin_call()
        self.is_inside_call = True
        self._deltas.append(CallDelta(self.num_calls, name, ""))
        found = yield from self._parameters(self._form.types.get(name, {}))
        if found is None and self._is_cut:
            return
        if found == CALL_END:
            self._reader.rest = CALL_END + self._reader.rest
        self.num_calls += 1
        self.is_inside_call = False

    def _parameters(self, types: dict[str, Types]) -> Reading[str | None]:
        """The tag that ends the function; None: the text ended before."""
        keys: set[str] = set()
        found = yield from self._next_parameter()
        while found == PARAMETER:
            key = yield from self._reader.name()
            if key is not None:
                # JSON has no key twice: the first value counts.
                emit = _ignore if key in keys else self._add_arguments
                emit((", " if keys else "{") + json.dumps(key, ensure_ascii=False) + ": ")
                keys.add(key)
                found = yield from self._value(types.get(key, ()), emit)
            if found in (PARAMETER, PARAMETER_END):
                found = yield from self._next_parameter()
        if found is not None or not self._is_cut:
            self._add_arguments("}" if keys else "{}")
        return found

    def _next_parameter(self) -> Reading[str | None]:
        return (yield from self._reader.until((PARAMETER, FUNCTION_END, CALL_END), _ignore))

    def _value(self, types: Types, emit: Callable[[str], None]) -> Reading[str | None]:
        """The tag that ends it; None: the text ended before."""
        value = _TextValue(emit) if is_text(types) else _TypedValue(emit, types)
        while True:
            found = yield from self._reader.until((PARAMETER_END, FUNCTION_END), value.add)
            if found is None:
                break
            spaces, behind = yield from self._reader.behind_spaces(_BEHIND_VALUE[found])
            if behind is not None or self._reader.has_ended:
                self._reader.rest = (behind or "") + self._reader.rest
                break
            value.add(found + spaces)
        if found is not None or not self._is_cut:
            value.end()
        return found

    def _add_arguments(self, piece: str) -> None:
        if not piece:
            return
        if self._deltas and self._deltas[-1].name is None and self._deltas[-1].call == self.num_calls:
            piece = self._deltas.pop().arguments + piece
        self._deltas.append(CallDelta(self.num_calls, None, piece))


def _ignore(text: str) -> None:
    """For what stands where nothing should: the call has been told already, and cannot be text any more."""


class _TextValue:
    """A string, passed on as it comes: all but the line breaks that stand between it and its tags."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._has_begun = False
        self._held = ""

    def add(self, text: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._emit('"')
            text = text.removeprefix("\n")
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        self._emit(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])

    def end(self) -> None:
        self._emit('"' if self._has_begun else '""')


class _TypedValue:
    """A value that only shows at its end what it is."""

    def __init__(self, emit: Callable[[str], None], types: Types) -> None:
        self._emit = emit
        self._types = types
        self._pieces: list[str] = []

    def add(self, text: str) -> None:
        self._pieces.append(text)

    def end(self) -> None:
        text = "".join(self._pieces).removeprefix("\n").removesuffix("\n")
        self._emit(argument_json(text, self._types))


class _AnswerText:
    """The text around the calls, without the white space between it and them."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._spaces: list[str] = []  # at the end so far: a call may follow
        self._is_behind_call = False
        self._has_text = False

    def add(self, text: str) -> None:
        if self._is_behind_call:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            if self._is_behind_call and self._has_text:
                self._pieces.append("\n\n")
            self._pieces += [*self._spaces, kept]
            self._spaces.clear()
            self._has_text, self._is_behind_call = True, False
        self._spaces.append(text[len(kept) :])

    def begin_call(self) -> None:
        self._spaces.clear()
        self._is_behind_call = True

    def end(self) -> None:
        self._pieces += self._spaces
        self._spaces.clear()

    def take(self) -> str:
        pieces, self._pieces = self._pieces, []
        return "".join(pieces)
