"""Renders a checkpoint's chat template the way ``transformers`` does, without importing it."""

import json
import uuid
from datetime import datetime
from enum import Enum
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from splitrank.serving.text.chat_messages import ChatTemplateError, normalize_messages

RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "chat_template"})


def check_variables(variables: dict[str, Any]) -> None:
    """Of ``chat_template_kwargs``. Raises ``ChatTemplateError``."""
    if reserved := sorted(RESERVED_VARIABLES & variables.keys()):
        raise ChatTemplateError(f"chat_template_kwargs must not set {reserved[0]!r}")
    thinks = variables.get("enable_thinking")
    if not isinstance(thinks, bool | None):  # templates compare it with false, so that "no" would turn thinking on
        kind = type(thinks).__name__
        raise ChatTemplateError(f"enable_thinking of chat_template_kwargs must be true or false, not of type {kind}")


class Ending(Enum):
    """How a prompt ends."""

    ANSWER = "answer"  # where the assistant's next message begins
    NOTHING = "nothing"  # with the last message
    OPEN = "open"  # inside the last message, which goes on


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
        self,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        tools: list[dict[str, Any]] | None = None,
        ending: Ending = Ending.ANSWER,
    ) -> str:
        """Text of the prompt.

        ``messages`` and ``tools`` as OpenAI clients send them; ``variables`` (``chat_template_kwargs``) were checked
        (``check_variables``). Raises ``ChatTemplateError``, also for tools that the template would not mention.
        """
        if tools and not self.takes_tools:
            raise ChatTemplateError("the chat template of this checkpoint knows no tools")
        given = {"tools": tools or None, "documents": None, "add_generation_prompt": ending is Ending.ANSWER}
        names = {**given, **self._variables, **variables}
        try:
            plain = normalize_messages(messages)
            if ending is Ending.OPEN:
                return self._render_open(plain, names)
            return self._template.render(messages=plain, **names)
        except ChatTemplateError:
            raise
        except RecursionError:
            raise ChatTemplateError("the messages are nested too deeply") from None
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            # The template comes with the checkpoint. Any error in it is reported as a refusal of these messages.
            raise ChatTemplateError(f"the chat template refuses the messages: {_one_line(error)}") from None

    def _render_open(self, messages: list[dict[str, Any]], names: dict[str, Any]) -> str:
        """A mark behind the last message's text shows where the template would end it."""
        last, mark = messages[-1], uuid.uuid4().hex
        if last.get("tool_calls"):
            raise ChatTemplateError("a message that calls tools cannot be continued")
        marked = [*messages[:-1], {**last, "content": last["content"] + mark}]
        before, found, _ = self._template.render(messages=marked, **names).rpartition(mark)
        if not found:
            raise ChatTemplateError("the chat template does not show the text of the last message")
        return before


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
    """``namespace(...)`` that stores no name with a leading underscore, since such names break the sandbox."""

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
