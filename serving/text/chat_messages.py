"""Messages as OpenAI's clients send them, in the terms of chat templates."""

from typing import Any

from splitrank.serving.text.strict_json import StrictJSONError, parse_json


class ChatTemplateError(ValueError):
    """The messages cannot be rendered: what the template refuses, or what it cannot read. One line."""


def normalize_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Qwen's template would raise on, put in its own terms; keys without a value are dropped.

    ``developer`` becomes ``system``; system messages, wherever they stand, become one at the start; text parts become
    one string, ``reasoning`` becomes ``reasoning_content``, and arguments of past tool calls, JSON strings on the wire,
    become objects.
    """
    if not messages:
        raise ChatTemplateError("messages must hold at least one message")
    plain = [_normalize_message(message) for message in messages]
    system = [message for message in plain if message["role"] == "system"]
    if not system:
        return plain
    joined = "\n\n".join(message["content"] for message in system if message["content"])
    return [{**system[0], "content": joined}, *(message for message in plain if message["role"] != "system")]


def _normalize_message(message: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if value is not None}
    if plain.get("role") == "developer":
        plain["role"] = "system"
    content = plain.get("content", "")
    plain["content"] = content if isinstance(content, str) else "".join(part["text"] for part in content)
    reasoning = plain.pop("reasoning", None)
    if reasoning is not None and plain.setdefault("reasoning_content", reasoning) != reasoning:
        raise ChatTemplateError("reasoning and reasoning_content of a message differ; give one of them")
    if "tool_calls" in plain:
        plain["tool_calls"] = [_normalize_tool_call(call) for call in plain["tool_calls"]]
    return plain


def _normalize_tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ChatTemplateError("a tool call in the messages has no function name")
    return {**call, "function": {**function, "arguments": _as_object(function.get("arguments") or {})}}


def _as_object(arguments: Any) -> dict[str, Any]:
    """What is no object is shown to the model as it is, as one argument: a call that was cut off, or that a model wrote
    wrongly, stays in the conversation, and must not make each of its later turns an error."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = parse_json(arguments, "the arguments")
        except StrictJSONError:
            pass
    return value if isinstance(value, dict) else {"arguments": arguments}
