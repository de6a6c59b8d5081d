"""What /v1/messages answers, as types: for the API's documentation, and for the tests that hold answers to it."""

from typing import Any, Literal

import msgspec


class AnswerTextBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class AnswerThinkingBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class AnswerToolUseBlock(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(msgspec.Struct, forbid_unknown_fields=True):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerTextBlock | AnswerThinkingBlock | AnswerToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(msgspec.Struct):
    """``type`` says what else is there."""

    type: str


class CountedTokens(msgspec.Struct, forbid_unknown_fields=True):
    input_tokens: int


class MessageErrorFields(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    message: str


class MessageError(msgspec.Struct, forbid_unknown_fields=True):
    """Of every status above 399, and inside a stream that had begun."""

    type: Literal["error"]
    error: MessageErrorFields
