"""Checks users' values against a declared type and bounds; raises ``ValueError`` that names the value.

One rule for ``SamplingParams``, options in Python and TOML files: a value is converted if nothing is lost (numbers of
numpy and torch, an integer for a float, a list for a tuple); any other value is refused. ``16.0`` is no integer, ``1``
is no truth value, ``"5"`` and ``True`` are no numbers.
"""

from collections.abc import Callable
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

INT64_MAX = 2**63 - 1
# Members of a subclass (of an enum, say) become plain values: the encoder takes no subclass of ``str``.
_EXACT: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (float, float.__float__),
    (int, int.__int__),
)


class Bounds(NamedTuple):
    """Limits of a number, both included; with ``above`` the lower one is excluded."""

    low: float
    high: float
    above: bool = False

    def check(self, name: str, value: float) -> None:
        # Written so that NaN, which compares false with everything, is refused.
        if not (value > self.low if self.above else value >= self.low):
            raise ValueError(f"{name} must be {'above' if self.above else 'at least'} {self.low}, not {shown(value)}")
        if not value <= self.high:
            raise ValueError(f"{name} must be at most {self.high}, not {shown(value)}")


def as_type(name: str, value: Any, kind: Any, is_secret: bool = False) -> Any:
    """``value`` as ``kind``, a type or a generic alias such as ``tuple[int, ...]``. One string is a list of one. Raises
    ``ValueError``, which shows no ``is_secret`` value."""
    if type(value) is kind:
        return value
    if kind == tuple[str, ...] and isinstance(value, str):
        value = (value,)
    try:
        return msgspec.convert(_plain(value), kind, strict=True)
    except Exception:  # some objects raise any error: a tensor without data, a list that holds itself
        found = f"a {type(value).__name__}" if is_secret else shown(value)
        raise ValueError(f"{name} must be {describe(kind)}, not {found}") from None


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch, and members of subclasses, as plain values, also in containers."""
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
    """At most 80 characters of its repr. An integer may have more digits than Python prints."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
