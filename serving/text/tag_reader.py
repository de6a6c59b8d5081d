"""Reads tags in text that comes piece by piece, in the order of a grammar.

Its methods are generators that wait for more text: ``yield`` takes the next piece, or None once the text has ended. So
a grammar is written as if all of the text were there.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

from splitrank.serving.text.marked_text import MarkerFinder

MAX_NAME = 256  # characters
Value = TypeVar("Value")
Reading = Generator[None, str | None, Value]


class TagReader:
    """``rest`` is what has come and was not read yet. The work is linear in the text, however it is split."""

    def __init__(self) -> None:
        self.rest = ""
        self.has_ended = False

    def until(self, tags: tuple[str, ...], emit: Callable[[str], None]) -> Reading[str | None]:
        """The first of ``tags``; what stands before it goes to ``emit``. None: the text ends without one."""
        finder = MarkerFinder(tags)
        piece: str | None = self._take_rest()
        while piece is not None:
            before, found, self.rest = finder.push(piece)
            if before:
                emit(before)
            if found is not None:
                return found
            piece = yield from self._more()
        if held := finder.finish():
            emit(held)
        return None

    def behind_spaces(self, tags: tuple[str, ...]) -> Reading[tuple[str, str | None]]:
        """White space, and the one of ``tags`` that stands behind it; None if something else does."""
        spaces: list[str] = []
        begun = ""  # of a tag
        piece: str | None = self._take_rest()
        while piece is not None:
            if not begun:
                stripped = piece.lstrip()
                spaces.append(piece[: len(piece) - len(stripped)])
                piece = stripped
            begun += piece
            for tag in tags:
                if begun.startswith(tag):
                    self.rest = begun[len(tag) :]
                    return "".join(spaces), tag
            if not any(tag.startswith(begun) for tag in tags):
                break
            piece = yield from self._more()
        self.rest = begun
        return "".join(spaces), None

    def name(self) -> Reading[str | None]:
        """What stands before the next ``>``; None, with nothing read, if that is no name."""
        text = ""
        piece: str | None = self._take_rest()
        while piece is not None:
            text += piece
            name, closed, behind = text.partition(">")
            if len(name) > MAX_NAME or "<" in name or "\n" in name or (closed and not name.strip()):
                break
            if closed:
                self.rest = behind
                return name.strip()
            piece = yield from self._more()
        self.rest = text
        return None

    def _take_rest(self) -> str:
        rest, self.rest = self.rest, ""
        return rest

    def _more(self) -> Reading[str | None]:
        if self.has_ended:
            return None
        piece = yield
        self.has_ended = piece is None
        return piece
