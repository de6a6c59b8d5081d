"""An answer's tool calls on the wire."""

import uuid
from typing import Any

from splitrank.serving.text.tool_calls import CallDelta


def call_delta(delta: CallDelta) -> dict[str, Any]:
    """One entry of a stream's ``tool_calls``: id and name first, then pieces of the arguments."""
    if delta.name is None:
        return {"index": delta.call, "function": {"arguments": delta.arguments}}
    return {"index": delta.call, **_call(delta.name, delta.arguments)}


def whole_calls(deltas: list[CallDelta]) -> list[dict[str, Any]]:
    """The list ``tool_calls`` of a message."""
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        if delta.name is not None:
            names.append(delta.name)
            arguments.append([])
        arguments[-1].append(delta.arguments)
    return [_call(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True)]


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
