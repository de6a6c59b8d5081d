"""The checkpoint's tokenizer: text to ids, ids to text, and chat messages to a prompt.

The library releases Python's lock for batches only. So a text is encoded, and ids are decoded, as a batch of one, and
a thread that does it blocks no other. (``encode`` of 1 MiB would stop all threads for a second.)
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from splitrank.serving.grammar.byte_level import bytes_of
from splitrank.serving.text.chat_messages import ChatTemplateError
from splitrank.serving.text.chat_template import ChatTemplate, Ending
from splitrank.serving.text.prompt_length import PromptLength, component_state
from splitrank.serving.text.strict_json import find_surrogate
from splitrank.serving.text.tokenizer_files import TokenizerFiles, read_tokenizer_files


class Tokenizer:
    """The tokenizer of a checkpoint's ``files``. Raises ``ValueError``, one line that names the file."""

    def __init__(self, files: TokenizerFiles) -> None:
        self.files = files
        try:
            self.backend = tokenizers.Tokenizer.from_buffer(files.tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{files.tokenizer_file} is not a readable tokenizer: {error}") from None
        self.backend.no_truncation()  # tokenizer.json may hold the truncation and padding of the training
        self.backend.no_padding()
        self._template = _compile(files)
        self._length = PromptLength(self.backend)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        return cls(read_tokenizer_files(Path(folder)))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, max_tokens: int | None = None, add_special_tokens: bool = True) -> list[int]:
        """Ids of a plain prompt, with the special tokens that the tokenizer adds on its own (Qwen's adds none).

        ``add_special_tokens`` false: without those, as for a rendered chat, whose template wrote them. Raises
        ``ValueError`` for a lone surrogate, and ``PromptTooLongError`` for a text that certainly has more than
        ``max_tokens`` tokens, before it is tokenized whole.
        """
        if found := find_surrogate(text):
            raise ValueError(f"the text holds the lone surrogate {found}")
        if max_tokens is not None:
            self._length.check(text, max_tokens)
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, token_ids: list[int], shows_special: bool = False) -> str:
        """Text of all ids at once; ids without an entry show nothing, nor do special tokens unless asked."""
        return self.backend.decode_batch([token_ids], skip_special_tokens=not shows_special)[0]

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        variables: dict[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        ending: Ending = Ending.ANSWER,
    ) -> str:
        """The prompt's text. Raises ``ChatTemplateError`` with what the template refused."""
        if self._template is None:
            raise ChatTemplateError("this checkpoint has no chat template; use plain completions")
        return self._template.render(messages, variables or {}, tools, ending)

    def encode_chat(
        self, messages: list[dict[str, Any]], variables: dict[str, Any] | None = None, max_tokens: int | None = None
    ) -> list[int]:
        """Ids of the rendered chat: the template wrote every special token itself. Raises as both of them do."""
        return self.encode(self.render_chat(messages, variables), max_tokens, add_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, also if they are no whole character."""
        entry = self.backend.id_to_token(token_id)
        if entry is None:
            return b""
        if self._is_byte_level and token_id not in self._added_tokens:
            return bytes_of(entry)
        return entry.encode() if token_id in self._added_tokens else self.decode([token_id]).encode()

    def is_special(self, token_id: int) -> bool:
        """Whether the token has no text in outputs."""
        return self._added_tokens.get(token_id, False)

    @cached_property
    def _added_tokens(self) -> dict[int, bool]:
        """Id of each added token: whether it is special."""
        return {index: token.special for index, token in self.backend.get_added_tokens_decoder().items()}

    @cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in component_state(self.backend.decoder)


def _compile(files: TokenizerFiles) -> ChatTemplate | None:
    if files.template is None:
        return None
    try:
        return ChatTemplate(files.template, files.special_tokens)
    except ValueError as error:
        raise ValueError(f"{files.template_file}: {error}") from None


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """``ValueError`` if a token id has no row in the embedding of ``vocab_size`` rows."""
    if tokenizer.vocab_size > vocab_size:
        held = f"tokenizer.json has {tokenizer.vocab_size} token ids"
        raise ValueError(f"{held}, but the embedding of config.json only {vocab_size} rows")
