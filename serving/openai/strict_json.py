"""A request's body: bytes to a JSON object, and that to the types of its fields."""

import difflib
import re
import threading
from typing import Any, TypeVar

import msgspec

from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.fixed_values import fixed_values
from splitrank.serving.text.strict_json import StrictJSONError, parse_json

Body = TypeVar("Body", bound=msgspec.Struct)

_known: set[type[msgspec.Struct]] = set()
_learning = threading.Lock()


def parse_object(body: bytes) -> dict[str, Any]:
    """UTF-8, with or without a byte order mark. Raises ``ApiError`` 400 with the reason."""
    try:
        value = parse_json(body.decode("utf-8-sig"), "the body")
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not valid UTF-8 (byte {error.start})") from None
    except StrictJSONError as error:
        raise bad_request(str(error), error.path) from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return value


def convert(raw: dict[str, Any], body_type: type[Body]) -> Body:
    """Raises ``ApiError`` 400 that names the field. Threads may call it at the same time."""
    _learn(body_type)
    try:
        return msgspec.convert(raw, body_type, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        at = re.search(r" - at `(?:key in )?\$\.?(.*)`$", message)
        missing = re.search(r"missing required field `(\w+)`$", message)
        param = at[1] if at else missing[1] if missing else None
        if at and (wrong := re.match(r"Invalid (?:enum )?value ('.*') - at ", message)):
            named = " or ".join(map(repr, fixed_values(body_type, at[1])))
            raise bad_request(f"{param} must be {named}, not {wrong[1][:80]}", param) from None
        raise bad_request(message.replace(" - at `$.", " - at `"), param) from None


def _learn(body_type: type[msgspec.Struct]) -> None:
    """msgspec (0.22) looks at the fields of a type when it first needs them. A second thread that needs them meanwhile
    finds half of them, and reads at address 0."""
    if body_type not in _known:
        with _learning:
            msgspec.json.Decoder(body_type)
            _known.add(body_type)


def convert_known(raw: dict[str, Any], body_type: type[Body]) -> Body:
    """As ``convert``; a field that the type does not have is refused, unless it is null."""
    known = body_type.__struct_fields__
    for name, value in raw.items():
        if name not in known and value is not None:
            message = f"{name[:40]} is not supported{nearest(name, known)}"
            raise bad_request(message, name[:40], "unsupported_value")
    return convert(raw, body_type)


def nearest(name: str, known: tuple[str, ...]) -> str:
    """The end of a refusal: what was meant, perhaps."""
    matches = difflib.get_close_matches(name[:40], known, n=1)
    return f"; did you mean {matches[0]}?" if matches else " by this server"
