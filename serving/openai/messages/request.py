"""A body of /v1/messages as the chat that it means."""

from typing import Any

from splitrank.serving.openai.errors import ApiError, bad_request, with_flat_tools
from splitrank.serving.openai.messages.types import (
    Block,
    CountBody,
    MessageBody,
    MessageTool,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from splitrank.serving.openai.types import (
    ChatBody,
    FunctionDefinition,
    FunctionName,
    Message,
    NamedToolChoice,
    Tool,
)

_NAMES = {"stop": "stop_sequences"}  # of the chat: of the message


def as_chat(body: CountBody) -> ChatBody:
    """Fields of the same meaning. Raises ``ApiError`` 400 for what has none here."""
    for index, edit in enumerate(body.context_management.edits if body.context_management is not None else []):
        if not edit.type.startswith("clear_thinking_"):
            param = f"context_management.edits[{index}].type"
            raise bad_request(f"{param}: {edit.type[:80]!r} is not supported", param, "unsupported_value")
    choice = body.tool_choice
    chat = ChatBody(
        messages=_messages(body),
        tools=[_tool(tool) for tool in body.tools or []],
        tool_choice=_tool_choice(body),
        parallel_tool_calls=None if choice is None or not choice.disable_parallel_tool_use else False,
        enable_thinking=_thinks(body),
        chat_template_kwargs=body.chat_template_kwargs,
        continue_final_message=_continues(body),
    )
    if isinstance(body, MessageBody):
        if chat.continue_final_message and chat.enable_thinking:
            raise bad_request("an answer that continues the assistant's message has no thoughts", "thinking")
        chat.max_tokens, chat.stop, chat.stream = body.max_tokens, body.stop_sequences, body.stream
        for name, value in body.sampling().items():
            setattr(chat, name, value)
    return chat


def in_our_terms(error: ApiError) -> ApiError:
    """An error about the chat, with the names of the message."""
    if error.param in _NAMES:
        error.message = error.message.replace(error.param, _NAMES[error.param])
        error.param = _NAMES[error.param]
    return with_flat_tools(error)


def _thinks(body: CountBody) -> bool | None:
    """Off unless asked for, as Anthropic has it; None: ``chat_template_kwargs`` say it."""
    if (body.chat_template_kwargs or {}).get("enable_thinking") is not None:
        return None
    return body.thinking is not None and body.thinking.type != "disabled"


def _continues(body: CountBody) -> bool:
    """Whether the answer goes on with the last message: Anthropic's prefill."""
    last = body.messages[-1]
    return last.role == "assistant" and not any(isinstance(block, ToolUseBlock) for block in last.content)


def _tool(tool: MessageTool) -> Tool:
    return Tool("function", FunctionDefinition(tool.name, tool.description, tool.input_schema))


def _tool_choice(body: CountBody) -> Any:
    choice = body.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return None if choice is None else choice.type
    if choice.type == "any":
        return "required"
    if choice.name is None:
        raise bad_request("tool_choice of type tool needs a name", "tool_choice.name")
    return NamedToolChoice(FunctionName(choice.name))


def _messages(body: CountBody) -> list[Message]:
    messages = [] if body.system is None else [Message("system", _text(body.system))]
    for index, turn in enumerate(body.messages):
        messages += _of_assistant(turn, index) if turn.role == "assistant" else _of_user(turn, index)
    return messages


def _of_assistant(turn: Turn, index: int) -> list[Message]:
    if isinstance(turn.content, str):
        return [Message("assistant", turn.content)]
    message = Message("assistant", "")
    for position, block in enumerate(turn.content):
        match block:
            case TextBlock():
                message.content = f"{message.content}{block.text}"
            case ThinkingBlock():
                message.reasoning_content = (message.reasoning_content or "") + block.thinking
            case RedactedThinkingBlock():
                pass  # another server's secret: nothing that this model could read
            case ToolUseBlock():
                call = {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
                message.tool_calls = [*(message.tool_calls or []), call]
            case _:
                raise _misplaced(index, position, block, "assistant")
    return [message]


def _of_user(turn: Turn, index: int) -> list[Message]:
    """Results of tools are messages of their own; texts around them are the user's."""
    if isinstance(turn.content, str):
        return [Message("user", turn.content)]
    messages: list[Message] = []
    for position, block in enumerate(turn.content):
        match block:
            case TextBlock() if messages and messages[-1].role == "user":
                messages[-1].content = f"{messages[-1].content}{block.text}"
            case TextBlock():
                messages.append(Message("user", block.text))
            case ToolResultBlock():
                messages.append(Message("tool", _text(block.content or ""), tool_call_id=block.tool_use_id))
            case _:
                raise _misplaced(index, position, block, "user")
    return messages


def _misplaced(index: int, position: int, block: Block, role: str) -> ApiError:
    kind, param = type(block).__struct_config__.tag, f"messages[{index}].content[{position}]"
    return bad_request(f"{param}: a block of type {kind} cannot be in a message of the {role}", param)


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
