"""llguidance, an optional library: imported where a grammar is used, with our limits.

Its limits count steps of its own work, not seconds, so a grammar that the front accepts is not refused by a rank that
is slower.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MISSING = "structured output needs llguidance, which is not installed: pip install splitrank[structured]"


class GrammarError(ValueError):
    """What is wrong with a grammar, in one line."""


def require_library() -> None:
    """Raises ``GrammarError`` if llguidance is not installed."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise GrammarError(MISSING) from None


def limits() -> "LLParserLimits":
    """The library's defaults but for messages, which would hold the whole grammar."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def one_line(message: str, max_length: int = 300) -> str:
    """The library's messages have excerpts, some a backtrace."""
    return " ".join(message.split())[:max_length]
