"""The form that a request asks its answer to have, as a grammar."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from splitrank.serving.grammar.forms import (
    ANY_OBJECT,
    after_thinking,
    choice_grammar,
    json_grammar,
    lark_grammar,
    regex_grammar,
    written_grammar,
)
from splitrank.serving.grammar.library import GrammarError, require_library, with_deep_stack
from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.tool_grammars import calls_grammar
from splitrank.serving.openai.tools import wanted_tools
from splitrank.serving.openai.types import ChatBody, CommonBody, CompletionBody, ResponseFormat, StructuredOutputs, Tool
from splitrank.serving.text.tool_calls import CALL_OPENING, CallForm

MAX_WAIT_S = 10.0  # for a check that should take 0.25 s of processor time, also on a busy machine
# Checks at once. Some grammars of 300 bytes take minutes, and nothing can stop the library: those keep their places.
_places = threading.Semaphore(4)
Asked = tuple[str, Callable[[], str]]  # the field, and what makes its grammar


def asked_grammar(body: ChatBody | CompletionBody, calls: CallForm | None = None) -> str:
    """Empty: any text may be the answer. ``calls``: how calls of tools are found in it.

    An answer that must call a tool is calls alone, whatever form its text was to have: it has none. If it may call
    some, it is calls, or a text of the form. Raises ``ApiError`` 400 that names the field.
    """
    asked = list(_asked(body))
    wanted = wanted_tools(body) if isinstance(body, ChatBody) else []
    if not asked and not wanted:
        return ""
    param, make = asked[0] if asked else ("tool_choice", str)
    if len(asked) > 1:
        raise bad_request(f"{param} and {asked[1][0]} both say what the answer must be; give one of them", param)
    if body.ignore_eos:
        raise bad_request(f"ignore_eos contradicts {param}: its answer has an end", "ignore_eos")
    form = _made(param, make)
    if not isinstance(body, ChatBody) or not body.tools or body.tool_choice == "none":
        return form
    if calls is None:
        raise bad_request(f"{param} with tools needs a server with a --tool-call-parser", param, "unsupported_value")
    if wanted:
        return _of_tools("tool_choice", wanted, lambda: lark_grammar(calls_grammar(wanted, calls.one_only)))
    tools = body.tools
    return _of_tools("tools", tools, lambda: lark_grammar(calls_grammar(tools, calls.one_only, "@form"), form=form))


def _of_tools(param: str, tools: list[Tool], make: Callable[[], str]) -> str:
    def made() -> str:
        require_library()
        try:
            return make()
        except GrammarError as error:
            raise GrammarError(_named(tools, error)) from None

    return _made(param, made)


def _named(tools: list[Tool], error: GrammarError) -> str:
    """The error with the tool that has it alone, too."""
    for tool in tools:
        try:
            lark_grammar(calls_grammar([tool], one_only=True))
        except GrammarError as reason:
            return f"{tool.function.name}: {reason}"
    return str(error)


def _made(param: str, make: Callable[[], str]) -> str:
    def made_in_place() -> str:
        with _places:
            return make()

    try:
        return with_deep_stack(made_in_place, MAX_WAIT_S)
    except TimeoutError:
        raise bad_request(f"{param}: it is too complex: checking it took over {MAX_WAIT_S:g} s", param) from None
    except GrammarError as error:
        raise bad_request(f"{param}: {error}", param) from None


def grammar_behind(prompt_is_thinking: bool, grammar: str, calls: CallForm | None = None) -> str:
    """The grammar of all that comes behind the prompt, the rest of an open thought included. A call would end the
    thought, so none may begin in it."""
    if not grammar or not prompt_is_thinking:
        return grammar
    return after_thinking(grammar, without=CALL_OPENING if calls is not None else "")


def _asked(body: CommonBody) -> Iterator[Asked]:
    if body.response_format is not None:
        yield from _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs)
    if (schema := body.guided_json) is not None:
        yield "guided_json", lambda: json_grammar(schema)
    if (regex := body.guided_regex) is not None:
        yield "guided_regex", lambda: regex_grammar(regex)
    if (choices := body.guided_choice) is not None:
        yield "guided_choice", lambda: choice_grammar(choices)
    if (text := body.guided_grammar) is not None:
        yield "guided_grammar", lambda: written_grammar(text)


def _of_response_format(format: ResponseFormat) -> Iterator[Asked]:
    schema = format.json_schema
    if (schema is not None) != (format.type == "json_schema"):
        needed = "needs" if schema is None else "must not have"
        raise bad_request(f"response_format of type {format.type} {needed} json_schema", "response_format.json_schema")
    if format.type == "json_object":
        yield "response_format", lambda: json_grammar(ANY_OBJECT)
    if schema is not None:
        content: dict[str, Any] = ANY_OBJECT if schema.schema is msgspec.UNSET else schema.schema
        yield "response_format", lambda: json_grammar(content, is_strict=bool(schema.strict))


def _of_structured_outputs(asked: StructuredOutputs) -> Iterator[Asked]:
    whitespace = "" if asked.disable_any_whitespace else asked.whitespace_pattern
    given: list[Asked] = []
    if (schema := asked.json) is not None:
        given.append(("structured_outputs.json", lambda: json_grammar(schema, whitespace=whitespace)))
    if asked.json_object:
        given.append(("structured_outputs.json_object", lambda: json_grammar(ANY_OBJECT, whitespace=whitespace)))
    if (regex := asked.regex) is not None:
        given.append(("structured_outputs.regex", lambda: regex_grammar(regex)))
    if (choices := asked.choice) is not None:
        given.append(("structured_outputs.choice", lambda: choice_grammar(choices)))
    if (text := asked.grammar) is not None:
        given.append(("structured_outputs.grammar", lambda: written_grammar(text)))
    if not given:
        raise bad_request("structured_outputs needs json, json_object, regex, choice or grammar", "structured_outputs")
    yield from given
