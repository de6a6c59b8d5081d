"""JSON as it should be: no NaN, no infinity, no duplicate keys, no lone surrogates, UTF-8, and an object on top."""

import json
import math
from collections import Counter
from typing import Any, NoReturn

from splitrank.serving.openai.errors import bad_request


def parse_object(body: bytes) -> dict[str, Any]:
    """Raises ``ApiError`` 400 with the reason."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            object_pairs_hook=_unique_keys,
        )
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not valid UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except ValueError as error:  # our own refusals, and integers of thousands of digits
        raise bad_request(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    if b"\\u" in body:
        _refuse_surrogates(value, "")
    return value


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
        raise ValueError(f"duplicate key {duplicate!a}")
    return result


def _refuse_surrogates(value: Any, param: str) -> None:
    if isinstance(value, str):
        _check_text(value, param)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{param}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, param)
            _refuse_surrogates(item, f"{param}.{key}" if param else key)


def _check_text(text: str, param: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise bad_request(f"a string holds the lone surrogate {found}", param or None) from None
