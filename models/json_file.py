"""Reads the JSON files that lie in a checkpoint's folder."""

import json
from pathlib import Path
from typing import Any

from splitrank.models.errors import CheckpointError


def read_json_object(file: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in ``file``; an empty one if the file is ``optional`` and missing.

    Raises ``CheckpointError`` that names the file if it is missing, cannot be read, or holds anything but an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(f"{file}: no such file") from None
    # ValueError: not UTF-8, not JSON, or an integer of thousands of digits. RecursionError: nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return value
