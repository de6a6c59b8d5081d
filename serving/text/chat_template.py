"""Renders a checkpoint's chat template the way ``transformers`` does, without importing it."""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from splitrank.serving.text.strict_json import StrictJSONError, parse_json

RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "chat_template"})


class ChatTemplateError(ValueError):
    """The messages cannot be rendered: what the template refuses, or what it cannot read. One line."""


class ChatTemplate:
    """A compiled template. ``variables`` are the special tokens it may name, e.g. ``{"eos_token": "<|im_end|>"}``."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        try:
            environment = _environment()
            self.takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from None
        self._variables = variables

    def render(
        self, messages: list[dict[str, Any]], variables: dict[str, Any], tools: list[dict[str, Any]] | None = None
    ) -> str:
        """Text of the prompt that asks for the assistant's next message.

        ``messages`` and ``tools`` as OpenAI clients send them; ``variables`` (``chat_template_kwargs``) reach the
        template as they are. Raises ``ChatTemplateError``, also for tools that the template would not mention.
        """
        if tools and not self.takes_tools:
            raise ChatTemplateError("the chat template of this checkpoint knows no tools")
        if reserved := sorted(RESERVED_VARIABLES & variables.keys()):
            raise ChatTemplateError(f"chat_template_kwargs must not set {reserved[0]!r}")
        names = {
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": True,
            **self._variables,
            **variables,
        }
        try:
            return self._template.render(messages=normalize_messages(messages), **names)
        except ChatTemplateError:
            raise
        except RecursionError:
            raise ChatTemplateError("the messages are nested too deeply") from None
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            # The template is the checkpoint's: whatever it raises, it raises on these messages.
            raise ChatTemplateError(f"the chat template refuses the messages: {_one_line(error)}") from None


def normalize_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What Qwen's template would raise on, put in its own terms; keys without a value are dropped.

    ``developer`` becomes ``system``, system messages that lead the conversation become one, text parts become one
    string, ``reasoning`` becomes ``reasoning_content``, and arguments of past tool calls, JSON strings on the wire,
    become objects.
    """
    if not messages:
        raise ChatTemplateError("messages must hold at least one message")
    plain = [_normalize_message(message) for message in messages]
    leading = next((index for index, message in enumerate(plain) if message["role"] != "system"), len(plain))
    if leading > 1:
        joined = "\n\n".join(message["content"] for message in plain[:leading])
        plain[:leading] = [{"role": "system", "content": joined}]
    return plain


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
    what = f"arguments of the tool call {function['name'][:40]!r}"
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments, what)
        except StrictJSONError as error:
            raise ChatTemplateError(str(error)) from None
    if not isinstance(arguments, dict):
        raise ChatTemplateError(f"{what}: not a JSON object")
    return {**call, "function": {**function, "arguments": arguments}}


# ------------------------------------------------------------------ the environment, as transformers sets it up


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's own text for training; here it only renders its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _MakeDict()
    environment.globals["namespace"] = _Namespace
    return environment


class _MakeDict:
    """``dict(...)`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """``namespace(...)`` that stores no name with a leading underscore: a way around the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template must not store {name!r} in a namespace")
        super().__setitem__(name, value)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
