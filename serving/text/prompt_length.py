"""Refuses prompts that are far too long without tokenizing them whole: by their bytes, then by their first pieces."""

import unicodedata
from typing import Any

import tokenizers

from splitrank.models.rounding import ceil_div

# A text with up to so many characters per token of the limit is tokenized whole at once, since it may well fit.
USUAL_CHARS_PER_TOKEN = 8
PIECE_CHARS = 64 * 2**10
# A cut between two pieces adds a token or two, so pieces with twice the limit are certainly too long.
CERTAIN_FACTOR = 2


class PromptTooLongError(ValueError):
    """``num_tokens``: a lower bound of the prompt's tokens, above the limit."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"the prompt has at least {num_tokens} tokens")
        self.num_tokens = num_tokens


class PromptLength:
    """Lower bounds of the number of tokens of a text."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._max_token_bytes = _max_token_bytes(backend)

    def check(self, text: str, max_tokens: int) -> None:
        """Raises ``PromptTooLongError`` for a text that certainly has more than ``max_tokens`` tokens.

        Another text may be too long all the same. The work is bounded by ``max_tokens``, not by the text's length.
        """
        if (least := self.at_least(text)) > max_tokens:
            raise PromptTooLongError(least)
        if len(text) > USUAL_CHARS_PER_TOKEN * max_tokens and self._pieces_exceed(text, CERTAIN_FACTOR * max_tokens):
            raise PromptTooLongError(max_tokens + 1)

    def at_least(self, text: str) -> int:
        """Tokens of ``text`` if each were as long as the longest of the vocabulary; 0 if that has no limit."""
        if self._max_token_bytes is None:
            return 0
        return ceil_div(len(unicodedata.normalize("NFC", text).encode()), self._max_token_bytes)

    def _pieces_exceed(self, text: str, num_tokens: int) -> bool:
        for start in range(0, len(text), PIECE_CHARS):
            if num_tokens < 0:
                return True
            piece = text[start : start + PIECE_CHARS]
            num_tokens -= len(self._backend.encode_batch_fast([piece], add_special_tokens=False)[0])
        return num_tokens < 0


def _max_token_bytes(backend: tokenizers.Tokenizer) -> int | None:
    """The longest token, in bytes of the text after NFC. None if the tokenizer may shorten text in other ways."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder().values()
    keeps_all_text = (
        component_state(backend.normalizer) in ("", '{"type":"NFC"}')
        and '"ByteLevel"' in component_state(backend.pre_tokenizer)
        and '"Removed"' not in component_state(backend.pre_tokenizer)
        and not any(token.lstrip or token.rstrip for token in added)
        and all(character in vocabulary for character in tokenizers.pre_tokenizers.ByteLevel.alphabet())
    )
    if not keeps_all_text:
        return None
    # An entry of a byte-level vocabulary has one character a byte; an added token is plain text.
    return max(max(map(len, vocabulary)), *(len(token.content.encode()) for token in added))


def component_state(component: Any) -> str:
    """A part of the tokenizer as the JSON of tokenizer.json; empty if it has no such part."""
    return "" if component is None else component.__getstate__().decode()
