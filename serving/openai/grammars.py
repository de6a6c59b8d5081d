"""The form that a request asks its answer to have, as a grammar."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from splitrank.serving.grammar.forms import (
    ANY_OBJECT,
    after_thinking,
    choice_grammar,
    json_grammar,
    regex_grammar,
    written_grammar,
)
from splitrank.serving.grammar.library import GrammarError
from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.types import ChatBody, CommonBody, CompletionBody, ResponseFormat, StructuredOutputs

Asked = tuple[str, Callable[[], str]]  # the field, and what makes its grammar


def asked_grammar(body: ChatBody | CompletionBody) -> str:
    """Empty: any text may be the answer. Raises ``ApiError`` 400 that names the field."""
    asked = list(_asked(body))
    if not asked:
        return ""
    (param, make), *others = asked
    if others:
        raise bad_request(f"{param} and {others[0][0]} both say what the answer must be; give one of them", param)
    if body.ignore_eos:
        raise bad_request(f"ignore_eos contradicts {param}: its answer has an end", "ignore_eos")
    if isinstance(body, ChatBody) and body.tools and body.tool_choice != "none":
        message = f"{param} with tools is not supported: a call would not have that form; give tool_choice none"
        raise bad_request(message, param, "unsupported_value")
    try:
        return make()
    except GrammarError as error:
        raise bad_request(f"{param}: {error}", param) from None


def grammar_behind(prompt_is_thinking: bool, grammar: str) -> str:
    """The grammar of all that comes behind the prompt, the rest of an open thought included."""
    return after_thinking(grammar) if grammar and prompt_is_thinking else grammar


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
