"""What the API answers, as types: for its documentation, and for the tests that hold answers to it.

Answers are written as dictionaries, piece by piece; these types write nothing.
"""

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorFields(msgspec.Struct, forbid_unknown_fields=True):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, forbid_unknown_fields=True):
    """Of every status above 399, and inside a stream that had begun."""

    error: ErrorFields


class Model(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(msgspec.Struct, forbid_unknown_fields=True):
    object: Literal["list"]
    data: list[Model]


class PromptTokensDetails(msgspec.Struct, forbid_unknown_fields=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, forbid_unknown_fields=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(msgspec.Struct, forbid_unknown_fields=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, forbid_unknown_fields=True):
    content: list[TokenLogprob]
    refusal: None


class CompletionLogprobs(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str  # JSON


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None
    reasoning: str | None
    refusal: None
    tool_calls: list[ToolCall] = []


class PromptToken(msgspec.Struct, forbid_unknown_fields=True):
    logprob: float | None
    rank: int
    decoded_token: str


PromptTokens = list[dict[str, PromptToken] | None]  # for each token of the prompt, by token id


class Choice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    index: int
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    prompt_token_ids: list[int] = []
    token_ids: list[int] = []


class ChatChoice(Choice, kw_only=True):
    message: AnswerMessage
    logprobs: ChatLogprobs | None


class TextChoice(Choice, kw_only=True):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_logprobs: PromptTokens = []


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Answer, kw_only=True):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptTokens = []


class Completion(Answer, kw_only=True):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class CalledFunctionDelta(msgspec.Struct, forbid_unknown_fields=True):
    arguments: str
    name: str | None = None


class ToolCallDelta(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    function: CalledFunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class MessageDelta(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] = []


class ChatChoiceDelta(Choice, kw_only=True):
    delta: MessageDelta
    logprobs: ChatLogprobs | None


class ChatCompletionChunk(Answer, kw_only=True):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChoiceDelta]
    usage: Usage | None = None


class CompletionChunk(Answer, kw_only=True):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage | None = None


class Status(msgspec.Struct, forbid_unknown_fields=True):
    status: str
    phase: str | None = None
    model: str | None = None


class Version(msgspec.Struct, forbid_unknown_fields=True):
    version: str


class Tokens(msgspec.Struct, forbid_unknown_fields=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str


def read_as(kind: type[Any], body: bytes) -> Any:
    """The answer, strictly as ``kind``; raises ``msgspec.ValidationError``."""
    return msgspec.json.decode(body, type=kind, strict=True)
