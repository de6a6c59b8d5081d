"""llguidance, an optional library: imported where a grammar is used, with our limits.

Its limits count steps of its own work, not seconds, so a grammar that the front accepts is not refused by a rank that
is slower.
"""

import importlib.metadata
import re
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from splitrank.serving.options.abandonable import in_daemon_thread

if TYPE_CHECKING:
    from llguidance import LLParserLimits

# 64 KiB of grammar nest some 6,500 levels, of at most 8 KiB of stack each. Only what is used of it takes memory.
STACK_BYTES = 256 * 2**20
Result = TypeVar("Result")
_stack_size = threading.Lock()
OLDEST = (1, 9)  # as pyproject.toml's extra; what went before has other classes
MISSING = "structured output needs llguidance, which is not installed: pip install splitrank[structured]"
TOO_OLD = "structured output needs llguidance 1.9 or newer, this is {}: pip install --upgrade splitrank[structured]"


class GrammarError(ValueError):
    """What is wrong with a grammar, in one line."""


def require_library() -> None:
    """Raises ``GrammarError`` if llguidance is not installed, or too old."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise GrammarError(MISSING) from None
    version = installed_version()
    numbers = [int(number) for number in version.split(".")[:2] if number.isdecimal()]
    if (*numbers,) < OLDEST:
        raise GrammarError(TOO_OLD.format(version))


@cache
def installed_version() -> str:
    return importlib.metadata.version("llguidance")


def limits() -> "LLParserLimits":
    """The library's defaults but for messages, which would hold the whole grammar."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def one_line(message: str, max_length: int = 300) -> str:
    """Without the lines of the grammar that the library shows, which a user need not have written."""
    said = [line for line in message.splitlines() if not re.match(r"\s*\d+ \| |\s*\^\s*$", line)]
    return " ".join(" ".join(said).split())[:max_length]


def with_deep_stack(work: Callable[[], Result], timeout_s: float | None = None) -> Result:
    """The result of ``work``, or its error, from a thread with a stack of ``STACK_BYTES``. The library follows chains
    of rules and nested schemas by recursion: a usual stack of 8 MiB overflows after 1,000 levels, and that ends the
    process. Raises ``TimeoutError`` after ``timeout_s``; the thread then ends by itself."""
    with _stack_size:  # the size is the process's, for all threads that start meanwhile
        before = threading.stack_size(STACK_BYTES)
        try:
            outcome = in_daemon_thread(work)
        finally:
            threading.stack_size(before)
    return outcome.result(timeout_s)
