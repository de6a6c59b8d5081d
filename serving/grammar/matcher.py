"""Follows one answer through its grammar: which tokens may come next."""

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from splitrank.serving.grammar.library import GrammarError, limits, one_line, require_library, with_deep_stack
from splitrank.serving.grammar.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


NUM_KEPT = 64  # compiled grammars; requests often share one, and those that wait have theirs compiled before


class Matchers:
    """Makes the matchers of one checkpoint. ``read_vocabulary`` takes seconds for a large one, and holds Python's lock:
    a rank calls it while it loads. Otherwise the first matcher does."""

    def __init__(self, model_dir: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._source = (model_dir, vocab_size, eos_token_ids)
        self._read: LLTokenizer | GrammarError | None = None
        self._compiled = lru_cache(maxsize=NUM_KEPT)(self._compile)

    def matcher(self, grammar: str) -> "TokenMatcher":
        """At the beginning of an answer. Raises ``GrammarError``."""
        return TokenMatcher(self._compiled(grammar).deep_copy())

    def prepare(self, grammar: str) -> None:
        """Compiles it for the next ``matcher``. Any thread may; one that cannot be compiled fails there again."""
        with suppress(GrammarError):
            self._compiled(grammar)

    def read_vocabulary(self) -> None:
        """Reads it, or keeps why it cannot be read, for those who ask for a matcher."""
        with suppress(GrammarError):
            self._vocabulary  # noqa: B018

    @property
    def _vocabulary(self) -> "LLTokenizer":
        if self._read is None:
            try:
                self._read = read_vocabulary(*self._source)
            except (GrammarError, OSError) as error:
                self._read = GrammarError(one_line(str(error)))
        if isinstance(self._read, GrammarError):
            raise self._read
        return self._read

    def _compile(self, grammar: str) -> "LLMatcher":
        require_library()
        from llguidance import LLMatcher

        vocabulary = self._vocabulary
        matcher = with_deep_stack(lambda: LLMatcher(vocabulary, grammar, log_level=0, limits=limits()))
        _check(matcher)
        return matcher


class TokenMatcher:
    """``allowed``, then ``advance`` by the token that was chosen, in turns. Both raise ``GrammarError``, and after it
    always."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """[vocab_size]: whether each token may come next. Stop tokens may where the grammar may end."""
        mask = self._matcher.compute_bitmask()
        _check(self._matcher)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little", count=vocab_size)
        return bits.view(np.bool_)

    def advance(self, token: int) -> None:
        """Behind the end of the answer: only stop tokens are allowed, any number of them."""
        self._matcher.consume_token(token)
        _check(self._matcher)


def _check(matcher: "LLMatcher") -> None:
    if matcher.is_error():
        raise GrammarError(f"the grammar cannot be followed: {one_line(matcher.get_error())}")
