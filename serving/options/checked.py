"""Values as people give them: of the declared type and within the declared bounds, or a ``ValueError`` that names them.

One rule for ``SamplingParams``, options in Python and TOML files: what loses nothing is converted (numpy's and torch's
numbers to Python's, an integer where a float is wanted, a list for a tuple), anything else is refused. ``16.0`` is no
integer, ``1`` no truth value, ``"5"`` no number, ``True`` neither.
"""

from collections.abc import Callable
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

INT64_MAX = 2**63 - 1
# The value of a subclass (an enum's member, say) in the class itself: the wire takes no subclass of ``str``.
_EXACT: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (float, float.__float__),
    (int, int.__int__),
)


class Bounds(NamedTuple):
    """Limits of a number, both included; ``above``: the lower one is not."""

    low: float
    high: float
    above: bool = False

    def check(self, name: str, value: float) -> None:
        # Written so that NaN, which compares false with everything, is refused.
        if not (value > self.low if self.above else value >= self.low):
            raise ValueError(f"{name} must be {'above' if self.above else 'at least'} {self.low}, not {shown(value)}")
        if not value <= self.high:
            raise ValueError(f"{name} must be at most {self.high}, not {shown(value)}")


def as_type(name: str, value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, a type or a generic alias such as ``tuple[int, ...]``. Raises ``ValueError``."""
    if type(value) is kind:
        return value
    try:
        return msgspec.convert(_plain(value), kind, strict=True)
    except Exception:  # strange objects raise anything: a tensor without data, a list inside itself
        raise ValueError(f"{name} must be {describe(kind)}, not {shown(value)}") from None


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch, and subclasses of text and numbers, as Python's own; in containers too."""
    if hasattr(value, "tolist"):
        return value.tolist()
    for kind, exact in _EXACT:
        if isinstance(value, kind) and not isinstance(value, bool):
            return exact(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def check_text(name: str, text: str) -> None:
    """Refuses half of a surrogate pair, which a Python string may hold and UTF-8 cannot write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text without lone surrogates, not {shown(text)}") from None


def describe(kind: Any) -> str:
    """A type in words: "of type int", "a list of int", "a map of int to float", "of type int or None"."""
    names = " or ".join("None" if one is NoneType else getattr(one, "__name__", str(one)) for one in _members(kind))
    if get_origin(kind) in (tuple, list):
        return f"a list of {names}"
    if get_origin(kind) is dict:
        return f"a map of {names.replace(' or ', ' to ')}"
    return f"of type {names}"


def _members(kind: Any) -> tuple[Any, ...]:
    return tuple(one for one in get_args(kind) if one is not ...) or (kind,)


def shown(value: Any) -> str:
    """At most 80 characters of it; an integer may have more digits than Python is willing to print."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
