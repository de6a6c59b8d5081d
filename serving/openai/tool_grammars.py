"""Calls of tools as a grammar: Qwen's XML, the tools' names, and their arguments by their JSON schemas.

Parameters come in the order of the schema, required ones always. Where a value may be a string or something else, any
text may stand, as in Qwen's XML there are no quotes to tell them apart.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from splitrank.serving.grammar import forms
from splitrank.serving.grammar.forms import WHITESPACE, is_regex, regex_literal
from splitrank.serving.grammar.library import GrammarError
from splitrank.serving.openai.types import Tool
from splitrank.serving.text.argument_types import is_text, parameter_types, resolve
from splitrank.serving.text.tag_reader import MAX_NAME
from splitrank.serving.text.tool_calls import (
    CALL,
    CALL_END,
    FUNCTION,
    FUNCTION_END,
    PARAMETER,
    PARAMETER_END,
)

# A text ends at its closing tag on a line of its own. What the reader of calls would take for an end before must not
# stand in it.
_CLOSING = f"\n{PARAMETER_END}\n"
_TEXT = (
    r"/(?s:.*)\n<\/parameter>\n/ & "
    r"~/(?s:.*)(<\/parameter>\s*(<parameter=|<\/function>|<\/tool_call>)|<\/function>\s*<\/tool_call>)(?s:.*)/"
)


def calls_grammar(tools: list[Tool], one_only: bool, instead: str = "") -> str:
    """One call, or with ``one_only`` false several. ``instead``: a rule whose text may come in their stead. Of Lark's
    syntax, not checked. Raises ``GrammarError`` for a parameter that Qwen's XML cannot name or a schema that cannot be
    enforced."""
    functions = [_Function(number, tool) for number, tool in enumerate(tools)]
    names = " | ".join(function.rule for function in functions)
    rules = [
        f"start: calls{f' | {instead}' if instead else ''}",
        "calls: call" if one_only else r"calls: call (/\n\n?/ call)*",
        f"call: {_quoted(CALL)} {_quoted(chr(10))} ({names}) {_quoted(CALL_END)}",
        "text[lazy]: TEXT",
        f"TEXT: {_TEXT}",
    ]
    begin = time.thread_time()
    for line in (line for function in functions for line in function.lines()):
        rules.append(line)
        if time.thread_time() - begin > forms.MAX_CHECK_S:  # each pattern of a string is checked for itself
            raise GrammarError(f"the schemas are too complex: to read them took over {forms.MAX_CHECK_S} s")
    return "\n".join(rules)


class _Function:
    """The rules of one tool."""

    def __init__(self, number: int, tool: Tool) -> None:
        self.rule = f"f{number}"
        self._name = tool.function.name
        self._root = tool.function.parameters or {}
        self._is_strict = bool(tool.function.strict)

    def lines(self) -> Iterator[str]:
        properties = self._root.get("properties")
        properties = dict(properties) if isinstance(properties, dict) else {}
        required = self._root.get("required")
        required = required if isinstance(required, list) else []
        properties |= {name: True for name in required if isinstance(name, str) and name not in properties}
        parts = [_quoted(f"{FUNCTION}{self._name}>\n")]
        for index, (key, schema) in enumerate(properties.items()):
            rule = f"{self.rule}_{index}"
            parts.append(rule if key in required else rule + "?")
            yield from self._parameter(rule, key, schema)
        yield f"{self.rule}: {' '.join(parts)} {_quoted(f'{FUNCTION_END}{chr(10)}')}"

    def _parameter(self, rule: str, key: str, schema: Any) -> Iterator[str]:
        if not key or key != key.strip() or len(key) > MAX_NAME or any(letter in key for letter in "<>\n"):
            raise GrammarError(f"a call cannot name the parameter {key[:80]!r}")
        values: list[str] = []
        for number, option in enumerate(self._options(schema)):
            if not isinstance(option, dict | bool):
                raise GrammarError(f"the schema of {key!r} refers to one that is not there")
            value, *rules = self._value(f"{rule}_{number}", option)
            values.append(value)
            yield from rules
        if "text" in values:
            values = ["text"]  # it has all of the others
        yield f"{rule}: {_quoted(f'{PARAMETER}{key}>{chr(10)}')} ({' | '.join(values)})"

    def _options(self, schema: Any) -> list[Any]:
        """The alternatives of a value, each without a reference at its top."""
        schema = resolve(schema, self._root)
        for name in ("anyOf", "oneOf"):
            options = schema.get(name) if isinstance(schema, dict) else None
            if isinstance(options, list) and options:
                return [resolve(option, self._root) for option in options]
        return [schema]

    def _value(self, rule: str, schema: dict[str, Any] | bool) -> list[str]:
        """What stands for a value and its closing tag, and rules that it needs."""
        if schema is True or schema == {}:
            return ["text"]
        if schema is False:
            return [self._json(schema)]
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            written = [value if isinstance(value, str) else json.dumps(value) for value in values]
            return [f"({' | '.join(map(_quoted, written))}) {_quoted(_CLOSING)}"]
        types = parameter_types({**self._root, "properties": {"value": schema}})["value"]
        if not is_text(types):
            return ["text" if "string" in types else self._json(schema)]
        limits = list(self._limits(schema))
        if not limits:
            return ["text"]
        bounded, terminal = f"{rule}_t", f"{rule}_T".upper()
        body = f"{terminal}_BODY: {' & '.join(limits)}"
        return [bounded, f"{bounded}[lazy]: {terminal}", rf"{terminal}: {terminal}_BODY /\n<\/parameter>\n/", body]

    def _limits(self, schema: dict[str, Any]) -> Iterator[str]:
        """Regular expressions that a string must match, all of them."""
        least, most, pattern = schema.get("minLength"), schema.get("maxLength"), schema.get("pattern")
        if isinstance(least, int) or isinstance(most, int):
            yield f"/(?s:.{{{least or 0},{'' if most is None else most}}})/"
        if isinstance(pattern, str):
            before, behind = ("" if pattern.startswith("^") else "(?s:.*)"), "(?s:.*)"
            if pattern.endswith("$") and not pattern.endswith("\\$"):
                pattern, behind = pattern[:-1], ""
            whole = f"{before}(?:{pattern.removeprefix('^')}){behind}"
            if is_regex(whole):
                yield regex_literal(whole)
            elif self._is_strict:
                raise GrammarError(f"the pattern {pattern[:80]!r} cannot be enforced")

    def _json(self, schema: Any) -> str:
        """As in ``forms.json_grammar``. Definitions go along: references begin at the root."""
        if isinstance(schema, dict):
            named = {name: self._root[name] for name in ("$defs", "definitions") if name in self._root}
            options = {"whitespace_pattern": WHITESPACE} | (
                {} if self._is_strict else {"lenient": True, "coerce_one_of": True}
            )
            schema = {**named, **schema, "x-guidance": options}
        return f"%json {json.dumps(schema)} {_quoted(_CLOSING)}"


def _quoted(text: str) -> str:
    return json.dumps(text)
