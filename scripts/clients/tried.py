"""What the programs beside share: checks by name, a line for each on stdout, exit code 1 if one fails."""

import sys
import traceback
from collections.abc import Callable

QUESTION = "Mia has 14 shells. Leo has three times as many. How many shells do they have together?"
ANSWER = "#### 56"
TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

_failed: list[str] = []


def tried(name: str) -> Callable[[Callable[[], object]], None]:
    """``@tried("a stream")`` above a function calls it at once, and says what came of it."""

    def call(check: Callable[[], object]) -> None:
        try:
            check()
        except Exception as error:
            _failed.append(name)
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:300]
            print(f"FAILED {name}: {type(error).__name__} in line {where.lineno}: {said}", flush=True)
        else:
            print(f"ok {name}", flush=True)

    return call


def finish() -> None:
    sys.exit(bool(_failed))
