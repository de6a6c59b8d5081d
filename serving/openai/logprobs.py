"""Log probabilities in the two shapes of the wire."""

import codecs
from typing import Any

import msgspec

from splitrank.serving.protocol.messages import TokenLogprobs
from splitrank.serving.text.tokenizer import Tokenizer


class TokenNames:
    """Tokens as log probabilities name them. ``as_ids``: ``token_id:5``, which is never the name of two tokens."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False, shows_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._shows_special = shows_special

    def name(self, token_id: int) -> str:
        """The token as text; ``bytes:\\xe2\\x80`` if it is no whole characters, as OpenAI writes it."""
        if self._as_ids:
            return f"token_id:{token_id}"
        token = self.bytes(token_id)
        try:
            return token.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)

    def bytes(self, token_id: int) -> bytes:
        return self._tokenizer.token_bytes(token_id)

    def is_shown(self, token_id: int) -> bool:
        """Whether the token is part of the answer's text."""
        return self._shows_special or not self._tokenizer.is_special(token_id)


def _number(logprob: float) -> float:
    """Raises for NaN, which JSON does not have and msgspec would write as null."""
    if logprob != logprob:
        raise ValueError("a log probability is NaN")
    return logprob


class JoinedLists:
    """Lists by name, encoded as JSON item by item. As objects, the 21 entries per token of a long answer would take
    hundreds of megabytes, and seconds of work at its end."""

    def __init__(self) -> None:
        self._parts: dict[str, list[bytes]] = {}

    def add(self, lists: dict[str, list[Any]]) -> None:
        for name, values in lists.items():
            self._parts.setdefault(name, []).append(msgspec.json.encode(values)[1:-1])

    def whole(self) -> dict[str, msgspec.Raw] | None:
        """None if nothing was ever added."""
        joined = {name: b",".join(filter(None, parts)) for name, parts in self._parts.items()}
        return {name: msgspec.Raw(b"[" + content + b"]") for name, content in joined.items()} or None


def chat_logprobs(names: TokenNames, token_ids: list[int], logprobs: list[TokenLogprobs]) -> list[dict[str, Any]]:
    """The list ``content``: one object a token."""
    content = []
    for token_id, entry in zip(token_ids, logprobs, strict=True):
        top = zip(entry.top_ids, entry.top_logprobs, strict=True)
        alternatives = [_chat_entry(names, top_id, logprob) for top_id, logprob in top]
        content.append({**_chat_entry(names, token_id, entry.logprob), "top_logprobs": alternatives})
    return content


def _chat_entry(names: TokenNames, token_id: int, logprob: float) -> dict[str, Any]:
    return {"token": names.name(token_id), "logprob": _number(logprob), "bytes": list(names.bytes(token_id))}


class CompletionLogprobs:
    """Builds ``{tokens, token_logprobs, top_logprobs, text_offset}`` of one choice, also piece by piece."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0  # characters of text before the next token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: list[int], logprobs: list[TokenLogprobs]) -> dict[str, list[Any]]:
        """The object for the next tokens; offsets go on from the tokens before."""
        tokens, offsets = [], []
        for token_id in token_ids:
            tokens.append(self._names.name(token_id))
            offsets.append(self._advance(token_id))
        return {
            "tokens": tokens,
            "token_logprobs": [_number(entry.logprob) for entry in logprobs],
            "top_logprobs": [self._top(token_id, entry) for token_id, entry in zip(token_ids, logprobs, strict=True)],
            "text_offset": offsets,
        }

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if self._names.is_shown(token_id):
            self._offset += len(self._decoder.decode(self._names.bytes(token_id)))
        return offset

    def _top(self, token_id: int, entry: TokenLogprobs) -> dict[str, float]:
        """The best alternatives and the chosen token, which may not be one of them."""
        top_ids, values = [*entry.top_ids, token_id], [*entry.top_logprobs, entry.logprob]
        return {self._names.name(top_id): value for top_id, value in zip(top_ids, values, strict=True)}
