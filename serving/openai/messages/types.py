"""Bodies of /v1/messages and /v1/messages/count_tokens: the fields that are obeyed."""

from typing import Annotated, Any, Literal

import msgspec

from splitrank.serving.openai.types import MAX_STOP_STRINGS, SamplingBody, bound, said

CacheControl = Annotated[dict[str, Any] | None, said("taken; prefixes are cached whatever it says")]


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl = None


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """Thoughts of an earlier answer."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """Encrypted thoughts of another server's answer: left out."""

    data: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl = None


class ToolResultBlock(msgspec.Struct, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock


class Turn(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class MessageTool(msgspec.Struct):
    name: str
    input_schema: Annotated[dict[str, Any], said("JSON schema of the arguments")]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl = None


class MessageToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str | None, said("of the tool, if the type is tool")] = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """Without it there are no thoughts."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int | None, said("taken, and not enforced: max_tokens is")] = None


class OutputConfig(msgspec.Struct):
    effort: Annotated[str | None, said("taken, and not obeyed: thinking is on or off")] = None


class ContextEdit(msgspec.Struct):
    type: Annotated[str, said("clear_thinking_… alone: templates leave old thoughts out anyway")]


class ContextManagement(msgspec.Struct):
    edits: list[ContextEdit] = []


class CountBody(SamplingBody, kw_only=True):
    """What shapes the prompt; how tokens are chosen changes no count."""

    messages: Annotated[list[Turn], msgspec.Meta(min_length=1)]
    model: Annotated[str | None, said("the served name; it may be left out")] = None
    system: str | list[TextBlock] | None = None
    tools: list[MessageTool] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, said("variables of the template")] = None


class MessageBody(CountBody, kw_only=True):
    max_tokens: Annotated[int, bound("max_tokens", "thoughts included")]
    stop_sequences: Annotated[list[str], msgspec.Meta(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None


# Fields that are not obeyed, with the values that ask for nothing; null always does.
HARMLESS: dict[str, tuple[Any, ...]] = {"container": (), "mcp_servers": ([],)}
