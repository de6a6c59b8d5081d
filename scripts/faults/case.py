"""What a case is: a name, what it plays, and how it ends."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

POLL_S = 0.02
Value = TypeVar("Value")


class CaseFailed(AssertionError):
    """The product did not do what the case demands; one line."""


class CaseSkipped(Exception):
    """The case cannot be played here; the reason."""


@dataclass(frozen=True)
class Case:
    """``play`` gets a scene of its own, and returns one line: what clients and operator saw. It raises
    ``CaseFailed`` or ``CaseSkipped``."""

    group: str
    name: str
    play: Callable[..., str]

    @property
    def full_name(self) -> str:
        return f"{self.group}: {self.name}"


def demand(condition: object, otherwise: str) -> None:
    if not condition:
        raise CaseFailed(otherwise)


def wait_for(find: Callable[[], Value | None], what: str, limit_s: float, poll_s: float = POLL_S) -> Value:
    """What ``find`` returns, once that is true. ``CaseFailed`` after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not (found := find()):
        if time.monotonic() > deadline:
            raise CaseFailed(f"waited {limit_s:g} s for {what}")
        time.sleep(poll_s)
    return found
