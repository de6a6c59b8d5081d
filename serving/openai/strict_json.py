"""A request's body as a JSON object."""

from typing import Any

from splitrank.serving.openai.errors import bad_request
from splitrank.serving.text.strict_json import StrictJSONError, parse_json


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
