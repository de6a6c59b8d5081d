"""What users ask for (a schema, a regular expression, choices, a grammar) as one grammar, checked.

The check needs no vocabulary, so the front never builds one, which would hold Python's lock for a second.
"""

import json
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from splitrank.serving.grammar.library import GrammarError, limits, one_line, require_library

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_BYTES = 64 * 2**10
MAX_CHECK_S = 0.25  # of this thread's processor time; a rank then takes a second at most
# Between JSON's tokens: nothing, a space, or a line break and an indentation. Without a limit, a model that has nothing
# to say writes spaces until max_tokens.
WHITESPACE = r"( |\n[ \t]{0,40})"
ANY_OBJECT: dict[str, Any] = {"type": "object"}
_THINKING = 'start: thoughts "\\n\\n" @answer\nthoughts[lazy]: THOUGHTS\nTHOUGHTS: /(?s:.*)<\\/think>/'


def json_grammar(schema: Any, is_strict: bool = True, whitespace: str | None = None) -> str:
    """JSON of this schema (a dictionary, a truth value, or the text of either). ``is_strict``: a keyword that cannot be
    enforced is refused; otherwise it is ignored, and ``oneOf`` is read as ``anyOf``.

    ``whitespace``: a regular expression of the white space between tokens; empty: there is none.
    """
    require_library()
    from llguidance import LLMatcher

    options: JsonCompileOptions = {"lenient": not is_strict, "coerce_one_of": not is_strict}
    if whitespace == "":
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = WHITESPACE if whitespace is None else whitespace
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        return _checked(LLMatcher.grammar_from_json_schema(text, overrides=options))
    except GrammarError:
        raise
    except ValueError as error:
        raise GrammarError(one_line(str(error))) from None


def regex_grammar(regex: str) -> str:
    """The whole answer matches ``regex``, of Rust's syntax (no look-around, no references)."""
    require_library()
    from llguidance import LLMatcher

    return _checked(LLMatcher.grammar_from_regex(regex))


def choice_grammar(choices: list[str]) -> str:
    """The answer is one of these."""
    require_library()
    return _checked("start: " + " | ".join(json.dumps(choice) for choice in choices))


def written_grammar(text: str) -> str:
    """A user's own grammar, of Lark's syntax or of GBNF (EBNF with ``root ::=``)."""
    require_library()
    from llguidance import grammar_from

    if text.lstrip().startswith("{"):
        raise GrammarError("it must be Lark or GBNF, not JSON")
    try:
        grammar: str = grammar_from("grammar", text)
    except ValueError as error:
        raise GrammarError(one_line(str(error))) from None
    return _checked(grammar)


def lark_grammar(text: str, **others: str) -> str:
    """A grammar of Lark's syntax that may name ``others`` as ``@name``."""
    require_library()
    if not others:
        return _checked(text)
    inner = [{**_parts(grammar)[0], "name": name} for name, grammar in others.items()]
    return _checked(json.dumps({"grammars": [{"lark_grammar": text}, *inner]}))


def after_thinking(grammar: str, without: str = "") -> str:
    """The same behind thoughts, their end, and the empty line that templates write there. The thoughts are any text
    that does not hold ``without``."""
    first, *others = _parts(grammar)
    thinking = _THINKING + (f" & ~/(?s:.*){_escaped(without)}(?s:.*)/" if without else "")
    return json.dumps({"grammars": [{"lark_grammar": thinking}, {**first, "name": "answer"}, *others]})


def _parts(grammar: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"lark_grammar": grammar}]
    if grammar.lstrip().startswith("{"):
        parts = json.loads(grammar)["grammars"]
    return parts


def _escaped(text: str) -> str:
    """A text as it stands inside ``/.../``."""
    return re.escape(text).replace("\\\n", "\\n").replace("/", "\\/")


def regex_literal(regex: str) -> str:
    """``/regex/`` as Lark writes it."""
    from llguidance import LLMatcher

    grammar = json.loads(LLMatcher.grammar_from_regex(regex))["grammars"][0]["lark_grammar"]
    return str(grammar).removeprefix("start: ")


def is_regex(regex: str) -> bool:
    """Whether the library can enforce it."""
    try:
        return bool(regex_grammar(regex))
    except GrammarError:
        require_library()
        return False


@lru_cache(maxsize=64)
def _checked(grammar: str) -> str:
    from llguidance import LLMatcher

    num_bytes = len(grammar.encode())
    if num_bytes > MAX_BYTES:
        raise GrammarError(f"it has {num_bytes} bytes as a grammar; the limit is {MAX_BYTES}")
    begin = time.thread_time()
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
    took_s = time.thread_time() - begin
    if is_error:
        raise GrammarError(one_line(messages[0]))
    if any("can't validate" in message for message in messages):
        raise GrammarError("special tokens are not supported in grammars")
    if took_s > MAX_CHECK_S:
        raise GrammarError(f"it is too complex: checking it took {took_s:.2f} s, the limit is {MAX_CHECK_S} s")
    return grammar
