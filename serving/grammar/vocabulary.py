"""A checkpoint's vocabulary as llguidance reads it."""

from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from splitrank.serving.grammar.byte_level import bytes_of
from splitrank.serving.grammar.library import GrammarError, require_library

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class _TokenTable:
    """What the library asks of a tokenizer: the bytes of each token, and the ids of a text.

    Not the library's own reading of tokenizer.json: that takes every token like ``</think>`` for a special one, which
    no text of a grammar matches. A text that must come is asked for with its usual ids, or the model would have to
    spell it byte by byte; so ids must be the tokenizer's.
    """

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None
        self.special_token_ids = sorted({index for index, token in added.items() if token.special} | {*eos_token_ids})
        self.tokens = [b""] * vocab_size
        for entry, index in backend.get_vocab(with_added_tokens=True).items():
            self.tokens[index] = entry.encode() if index in added else bytes_of(entry)

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("only whole characters can be tokenized")  # the library tries bytes first
        return self._backend.encode(text, add_special_tokens=False).ids


def read_vocabulary(model_dir: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> "LLTokenizer":
    """Of ``vocab_size`` ids; those without an entry are never allowed. Takes a second for 248,320.

    Raises ``GrammarError`` if llguidance is not installed, or for a tokenizer that is not byte-level BPE.
    """
    require_library()
    from llguidance import LLTokenizer, TokenizerWrapper

    file = model_dir / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_buffer(file.read_bytes())
    if "ByteLevel" not in repr(backend.decoder):
        raise GrammarError(f"{file} is no byte-level BPE; grammars need one")
    if not eos_token_ids:
        raise GrammarError("the checkpoint names no stop token, which grammars need")
    backend.no_truncation()
    backend.no_padding()
    table = _TokenTable(backend, vocab_size, eos_token_ids)
    return LLTokenizer(TokenizerWrapper(table), n_vocab=vocab_size, eos_token=list(eos_token_ids))
