"""A body of /v1/responses as the chat that it means."""

from typing import Any

import msgspec

from splitrank.serving.openai.errors import ApiError, bad_request, with_flat_tools
from splitrank.serving.openai.responses.types import (
    HARMLESS,
    AnyObject,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputMessage,
    InputText,
    OutputText,
    Reasoning,
    ReasoningOptions,
    ResponseAllowedTools,
    ResponseBody,
    ResponseToolChoice,
    SchemaFormat,
    TextOptions,
)
from splitrank.serving.openai.strict_json import convert
from splitrank.serving.openai.types import (
    AllowedTools,
    AllowedToolsChoice,
    ChatBody,
    FunctionDefinition,
    FunctionName,
    JsonSchema,
    Message,
    NamedToolChoice,
    ResponseFormat,
    Tool,
)
from splitrank.serving.openai.unsupported import refuse_others

_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
}  # of the chat: of the response


def read_response(raw: dict[str, Any]) -> ResponseBody:
    """Raises ``ApiError`` 400 that names the field."""
    refuse_others(raw, ResponseBody, HARMLESS)
    items = raw.get("input")
    if isinstance(items, list):
        typed = [{"type": "message", **item} if isinstance(item, dict) and "role" in item else item for item in items]
        raw = {**raw, "input": typed}
    return convert(raw, ResponseBody)


def as_chat(body: ResponseBody) -> ChatBody:
    """Fields of the same meaning; the rest has no counterpart."""
    shows_logprobs = "message.output_text.logprobs" in (body.include or [])
    if body.top_logprobs and not shows_logprobs:
        raise bad_request('top_logprobs needs include: ["message.output_text.logprobs"]', "top_logprobs")
    return ChatBody(
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        tools=[
            Tool("function", FunctionDefinition(one.name, one.description, one.parameters, one.strict))
            for one in body.tools or []
        ],
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        chat_template_kwargs=body.chat_template_kwargs,
        response_format=_response_format(body),
        stream=body.stream,
        logprobs=shows_logprobs,
        top_logprobs=body.top_logprobs if shows_logprobs else None,
        **body.sampling(),
    )


def _tool_choice(body: ResponseBody) -> Any:
    choice = body.tool_choice
    if isinstance(choice, ResponseToolChoice):
        return _named(choice)
    if isinstance(choice, ResponseAllowedTools):
        return AllowedToolsChoice(AllowedTools(choice.mode, [_named(one) for one in choice.tools]))
    return choice


def _named(choice: ResponseToolChoice) -> NamedToolChoice:
    return NamedToolChoice(FunctionName(choice.name))


def _response_format(body: ResponseBody) -> ResponseFormat | None:
    match body.text.format if body.text is not None else None:
        case SchemaFormat() as format:
            schema = JsonSchema(format.name, format.schema, format.strict, format.description)
            return ResponseFormat("json_schema", schema)
        case AnyObject():
            return ResponseFormat("json_object")
        case _:
            return None


def in_our_terms(error: ApiError) -> ApiError:
    """An error about the chat, with the names of the response."""
    for chat_name, name in _NAMES.items():
        if error.param is not None and error.param.startswith(chat_name):
            error.param = name + error.param.removeprefix(chat_name)
            error.message = error.message.replace(chat_name, name)
    return with_flat_tools(error)


def echo(body: ResponseBody) -> dict[str, Any]:
    """What a response repeats of its request."""
    choice = "auto" if body.tool_choice is None else msgspec.to_builtins(body.tool_choice)
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": msgspec.to_builtins(body.reasoning or ReasoningOptions()),
        "text": {"format": {"type": "text"}} | _without_none(body.text or TextOptions()),
        "tool_choice": choice,
        "top_logprobs": body.top_logprobs or 0,
        "tools": [msgspec.to_builtins(tool) for tool in body.tools or []],
    }


def _without_none(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(struct).items() if value is not None}


def _messages(body: ResponseBody) -> list[Message]:
    """Items of one answer (thoughts, text, calls) become one message of the assistant."""
    messages = [] if body.instructions is None else [Message("system", body.instructions)]
    items: list[InputItem] = [InputMessage("user", body.input)] if isinstance(body.input, str) else body.input
    for item in items:
        _append(messages, item)
    return messages


def _append(messages: list[Message], item: InputItem) -> None:
    match item:
        case InputMessage(role="assistant"):
            message = _answer(messages, is_new=lambda last: last.content is not None or last.tool_calls is not None)
            message.content = _text(item.content)
        case InputMessage():
            messages.append(Message(item.role, _text(item.content)))
        case FunctionCall():
            message = _answer(messages, is_new=lambda last: False)
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            message.tool_calls = [*(message.tool_calls or []), call]
        case FunctionCallOutput():
            messages.append(Message("tool", _text(item.output), tool_call_id=item.call_id))
        case Reasoning():
            message = _answer(messages, is_new=lambda last: True)
            message.reasoning_content = "".join(part.text for part in item.content or item.summary)


def _answer(messages: list[Message], is_new: Any) -> Message:
    """The message of the assistant that the next item belongs to."""
    if not messages or messages[-1].role != "assistant" or is_new(messages[-1]):
        messages.append(Message("assistant"))
    return messages[-1]


def _text(content: str | list[InputText | OutputText] | list[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
