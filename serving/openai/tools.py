"""A chat's tools: what the template is told of them, and how calls are found in the answer."""

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.openai.types import AllowedToolsChoice, ChatBody, NamedToolChoice, Tool
from splitrank.serving.text.argument_types import parameter_types
from splitrank.serving.text.tool_calls import CallForm

MAX_TOOLS = 1024
_NAME = re.compile(r"[^\s<>]{1,128}")  # what can stand between <function= and >


@dataclass(frozen=True)
class AskedTools:
    """``described``: as templates read them. ``form`` None: calls stay text."""

    described: list[dict[str, Any]]
    form: CallForm | None


NO_TOOLS = AskedTools([], None)


def narrowed(body: ChatBody) -> ChatBody:
    """A choice of allowed tools as what it means: the others are not there, and its mode is the choice. Raises
    ``ApiError`` 400 for a name that is no tool's."""
    if not isinstance(body.tool_choice, AllowedToolsChoice):
        return body
    allowed, tools = body.tool_choice.allowed_tools, body.tools or []
    _check_names(tools)
    names = [one.function.name for one in allowed.tools]
    for name in names:
        _tool_named(name, tools)
    kept = [tool for tool in tools if tool.function.name in names]
    return msgspec.structs.replace(body, tools=kept, tool_choice=allowed.mode)


def asked_tools(body: ChatBody, settings: ApiSettings) -> AskedTools:
    """Raises ``ApiError`` 400 for what cannot be obeyed."""
    tools = body.tools or []
    _check_names(tools)
    choice = "auto" if body.tool_choice is None else body.tool_choice
    if not tools and not isinstance(choice, str):
        raise bad_request("tool_choice names a function, but there are no tools", "tool_choice")
    if not tools and choice == "required":
        raise bad_request("tool_choice is required, but there are no tools", "tool_choice")
    if not tools or choice == "none":
        return NO_TOOLS  # a model that is told of no tools calls none
    described = [_described(tool) for tool in tools]
    wanted = wanted_tools(body)
    if not settings.finds_tool_calls:
        if wanted:
            raise bad_request("tool_choice needs a server with a --tool-call-parser", "tool_choice")
        return AskedTools(described, None)
    types = {tool.function.name: parameter_types(tool.function.parameters or {}) for tool in tools}
    one_only = isinstance(choice, NamedToolChoice) or body.parallel_tool_calls is False
    return AskedTools(described, CallForm(types, one_only=one_only))


def wanted_tools(body: ChatBody) -> list[Tool]:
    """Those of which one must be called; none: the model decides."""
    tools, choice = body.tools or [], body.tool_choice
    if choice == "required":
        return tools
    if not isinstance(choice, NamedToolChoice):
        return []
    return [_tool_named(choice.function.name, tools)]


def _tool_named(name: str, tools: list[Tool]) -> Tool:
    for tool in tools:
        if tool.function.name == name:
            return tool
    raise bad_request(f"tool_choice names {name[:140]!r}, which is no tool", "tool_choice")


def _check_names(tools: list[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise bad_request(f"tools may hold {MAX_TOOLS} at most, not {len(tools)}", "tools")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        name, param = tool.function.name, f"tools[{index}].function.name"
        if not _NAME.fullmatch(name):
            raise bad_request(f"{param} must be 1 to 128 characters without spaces, < and >, not {name[:140]!r}", param)
        if name in seen:
            raise bad_request(f"{param}: there are two tools {name!r}", param)
        seen.add(name)


def _described(tool: Tool) -> dict[str, Any]:
    """Without ``strict``, which models were not trained on."""
    function = msgspec.to_builtins(tool.function)
    function.pop("strict", None)
    return {"type": "function", "function": function}
