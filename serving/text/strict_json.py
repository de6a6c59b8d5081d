"""Parses JSON without NaN, infinity, duplicate keys and lone surrogates."""

import json
import math
from collections import Counter
from typing import Any, NoReturn


class StrictJSONError(ValueError):
    """One line; ``path`` names the value at fault if it is known."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


def parse_json(text: str, what: str) -> Any:
    """The value of ``text``. Raises ``StrictJSONError`` that begins with ``what``: "the body"."""
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_unique_keys
        )
        if "\\u" in text or find_surrogate(text):
            _refuse_surrogates(value, what, "")
    except StrictJSONError:
        raise
    except RecursionError:
        raise StrictJSONError(f"{what} is nested too deeply") from None
    except ValueError as error:  # an error of json, a refusal below, or an integer of thousands of digits
        reason = str(error).partition("; use sys.")[0]  # Python's advice to raise that limit is for programmers
        raise StrictJSONError(f"{what} is not valid JSON: {reason}") from None
    return value


def find_surrogate(text: str) -> str | None:
    """The first lone surrogate, as JSON writes it. UTF-8 and tokenizers cannot express it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        [(duplicate, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {duplicate[:40]!a}")
    return result


def _refuse_surrogates(value: Any, what: str, path: str) -> None:
    if isinstance(value, str):
        _check_text(value, what, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, what, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, what, path)
            _refuse_surrogates(item, what, f"{path}.{key}" if path else key)


def _check_text(text: str, what: str, path: str) -> None:
    if found := find_surrogate(text):
        raise StrictJSONError(f"{what}: a string holds the lone surrogate {found}", path[:200] or None)
