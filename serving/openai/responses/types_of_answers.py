"""What /v1/responses answers, as types: for the API's documentation, and for the tests that hold answers to it."""

from typing import Any, Literal

import msgspec

from splitrank.serving.openai.answers import CompletionTokensDetails, PromptTokensDetails, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class AnswerText(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class AnswerThought(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="reasoning_text"):
    text: str


class MessageItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[AnswerText]


class ReasoningItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[Any]
    content: list[AnswerThought]
    encrypted_content: None


class FunctionCallItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str  # JSON


class ResponseUsage(msgspec.Struct, forbid_unknown_fields=True):
    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, forbid_unknown_fields=True):
    reason: Literal["max_output_tokens"]


class Response(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    background: bool
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    previous_response_id: None
    store: bool
    temperature: float
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int


class ResponseEvent(msgspec.Struct):
    """``type`` says what else is there."""

    type: str
    sequence_number: int
