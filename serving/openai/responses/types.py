"""Bodies of /v1/responses: the fields that are obeyed."""

from typing import Annotated, Any, Literal

import msgspec

from splitrank.serving.openai.types import MAX_TOP_LOGPROBS, Effort, SamplingBody, bound, said


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """Of an earlier answer."""

    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class InputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """``type`` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText]


class FunctionCall(msgspec.Struct, tag_field="type", tag="function_call"):
    call_id: str
    name: str
    arguments: Annotated[str, said("JSON; what is none is shown to the model as it is")]


class FunctionCallOutput(msgspec.Struct, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | list[InputText]


class Reasoning(msgspec.Struct, tag_field="type", tag="reasoning"):
    """Thoughts of an earlier answer, as that had them."""

    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None


InputItem = InputMessage | FunctionCall | FunctionCallOutput | Reasoning


class ResponseTool(msgspec.Struct, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[bool | None, said("taken, and not enforced")] = None


class ResponseToolChoice(msgspec.Struct, tag_field="type", tag="function"):
    name: str


class ResponseAllowedTools(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """As if the others were not there."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseToolChoice], msgspec.Meta(min_length=1)]


class ReasoningOptions(msgspec.Struct):
    effort: Annotated[Effort | None, said("none and minimal turn thinking off, the others on")] = None
    summary: Annotated[Literal["auto", "concise", "detailed"] | None, said("thoughts are given whole")] = None


class AnyText(msgspec.Struct, tag_field="type", tag="text"):
    pass


class AnyObject(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """As response_format of a chat."""

    name: str
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct):
    format: AnyText | AnyObject | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseBody(SamplingBody, kw_only=True):
    """Nothing is stored: a conversation is sent whole."""

    input: str | Annotated[list[InputItem], msgspec.Meta(min_length=1)]
    model: Annotated[str | None, said("the served name; it may be left out")] = None
    instructions: Annotated[str | None, said("the system message")] = None
    max_output_tokens: Annotated[int, bound("max_tokens", "thoughts included")] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | ResponseAllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    user: Annotated[str | None, said("a label; changes nothing")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, said("variables of the template")] = None
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            said("log probabilities of the text's tokens; thoughts are never encrypted"),
        ]
        | None
    ) = None
    top_logprobs: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None, said("with message.output_text.logprobs")
    ] = None


# Fields that are not obeyed, with the values that ask for nothing; null always does.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "truncation": ("disabled",),
}
