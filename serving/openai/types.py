"""Request bodies: the fields that are obeyed, with their strict types. ``unsupported.py`` refuses the others.

The API's documentation is generated from these types, so what a field means stands here.
"""

from typing import Annotated, Any, Literal

import msgspec

from splitrank.serving.options.checked import INT64_MAX
from splitrank.serving.protocol.sampling_params import BOUNDS

MAX_N = 8
MAX_STOP_STRINGS = 16
MAX_BAD_WORDS = 256
MAX_TOP_LOGPROBS = 20
# What msgpack carries to the engine; whatever a field means, a number beyond it is a mistake.
Int = Annotated[int, msgspec.Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]


def bound(name: str, description: str = "", **other: int) -> msgspec.Meta:
    """The sampler's bounds, so that they are stated once."""
    bounds = BOUNDS[name]
    limits: dict[str, Any] = {"gt" if bounds.above else "ge": bounds.low, "le": bounds.high, **other}
    meta: msgspec.Meta = msgspec.Meta(**limits, description=description or None)
    return meta


def said(description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description)


TokenId = Annotated[int, bound("stop_token_ids")]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class TextPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: Annotated[str | None, said("thoughts of an earlier turn")] = None
    reasoning: Annotated[str | None, said("reasoning_content by another name")] = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(msgspec.Struct, omit_defaults=True):
    name: Annotated[str, said("1 to 128 characters without spaces, < and >")]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, said("JSON schema of the arguments")] = None
    strict: Annotated[bool | None, said("of a call that must come: what cannot be enforced is refused")] = None


class Tool(msgspec.Struct):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(msgspec.Struct):
    name: str


class NamedToolChoice(msgspec.Struct, tag_field="type", tag="function"):
    function: FunctionName


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], msgspec.Meta(min_length=1, description="by name, of the request's tools")]


class AllowedToolsChoice(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """As if the others were not there."""

    allowed_tools: AllowedTools


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: Annotated[bool | None, said("usage in every chunk")] = None


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    schema: Annotated[dict[str, Any], said("left out: any JSON object")] | msgspec.UnsetType = msgspec.UNSET
    strict: Annotated[bool | None, said("true: keywords that cannot be enforced are refused, not ignored")] = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


Schema = Annotated[dict[str, Any] | str, said("a JSON schema, or its text")]
Choices = Annotated[list[str], msgspec.Meta(min_length=1)]


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """One of the first five."""

    json: Schema | None = None
    json_object: Annotated[bool | None, said("any JSON object")] = None
    regex: Annotated[str | None, said("Rust's syntax; the whole answer matches")] = None
    choice: Choices | None = None
    grammar: Annotated[str | None, said("Lark or GBNF")] = None
    disable_any_whitespace: Annotated[bool | None, said("in JSON")] = None
    whitespace_pattern: Annotated[str | None, said("between JSON's tokens")] = None


class SamplingBody(msgspec.Struct, kw_only=True):
    """How tokens are chosen, in every API. ``None`` is: not given."""

    temperature: Annotated[float, bound("temperature", "0: the likeliest token")] | None = None
    top_k: Annotated[int, bound("top_k", "0 and -1: all tokens", ge=-1)] | None = None
    top_p: Annotated[float, bound("top_p")] | None = None
    min_p: Annotated[float, bound("min_p")] | None = None
    seed: Annotated[int, bound("seed")] | None = None
    presence_penalty: Annotated[float, bound("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, bound("frequency_penalty")] | None = None
    repetition_penalty: Annotated[float, bound("repetition_penalty")] | None = None

    def sampling(self) -> dict[str, Any]:
        """These fields alone, for another body."""
        return {name: getattr(self, name) for name in SamplingBody.__struct_fields__}


class CommonBody(SamplingBody, kw_only=True):
    """What chats and completions share."""

    model: Annotated[str | None, said("the served name; it may be left out")] = None
    max_tokens: Annotated[int, bound("max_tokens")] | None = None
    min_tokens: Annotated[int, bound("min_tokens")] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_N, description="answers to each prompt")] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = None
    logit_bias: Annotated[dict[str, float] | None, said("by token id; -100 to 100")] = None
    ignore_eos: Annotated[bool | None, said("go on behind the end of the text")] = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: Annotated[bool | None, said("logprobs name tokens as token_id:5")] = None
    add_special_tokens: Annotated[bool | None, said("those that the tokenizer adds to a prompt")] = None
    skip_special_tokens: Annotated[bool | None, said("false: they show their names")] = None
    truncate_prompt_tokens: (
        Annotated[
            int,
            msgspec.Meta(
                ge=-1,
                le=INT64_MAX,
                description="only so many, the last ones, are used; -1: what max_tokens leaves of the context",
            ),
        ]
        | None
    ) = None
    response_format: Annotated[ResponseFormat | None, said("of the answer, behind its thoughts")] = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    bad_words: (
        Annotated[
            list[str], msgspec.Meta(max_length=MAX_BAD_WORDS, description="never said, as the tokenizer writes them")
        ]
        | None
    ) = None
    allowed_token_ids: Annotated[list[TokenId] | None, said("no others are chosen; empty: all are allowed")] = None
    priority: Annotated[int, bound("priority", "lower numbers go first, equal ones in order of arrival")] | None = None
    prompt_logprobs: Annotated[int, bound("prompt_logprobs", "so many of each prompt token; no streams")] | None = None
    user: Annotated[str | None, said("a label; changes nothing")] = None


class ChatBody(CommonBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: Annotated[int, bound("max_tokens", "wins over max_tokens")] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, said("variables of the template")] = None
    enable_thinking: Annotated[bool | None, said("of chat_template_kwargs, as some clients send it")] = None
    separate_reasoning: Annotated[bool | None, said("false: thoughts stay in the content")] = None
    add_generation_prompt: Annotated[bool | None, said("false: the prompt ends with the last message")] = None
    continue_final_message: Annotated[bool | None, said("the answer goes on with the last message")] = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolsChoice | None = None
    parallel_tool_calls: Annotated[bool | None, said("false: the answer ends with its first call")] = None
    reasoning_effort: Annotated[
        Effort | None, said("none and minimal turn thinking off, the others on; chat_template_kwargs win")
    ] = None


class CompletionBody(CommonBody, kw_only=True):
    prompt: Annotated[str | list[str | Int | list[Int]], said("text, token ids, or several of either")]
    max_tokens: Annotated[int, bound("max_tokens", "0 with echo or prompt_logprobs: the prompt alone", ge=0)] | None = (
        None
    )
    logprobs: Annotated[int, bound("logprobs", "with echo also those of the prompt")] | None = None
    echo: Annotated[bool | None, said("the text begins with the prompt")] = None
