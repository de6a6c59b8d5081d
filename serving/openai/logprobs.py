"""Log probabilities in the two shapes of the wire."""

import codecs
from collections.abc import Iterator
from typing import Any

import msgspec

from splitrank.serving.protocol.messages import TokenLogprobs
from splitrank.serving.text.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0


class TokenNames:
    """Tokens as log probabilities name them. ``as_ids``: ``token_id:5``, which is never the name of two tokens."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False, shows_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._shows_special = shows_special

    def name(self, token_id: int) -> str:
        """The token as text; ``bytes:\\xe2\\x80`` if it is no whole characters, as OpenAI writes it."""
        return f"token_id:{token_id}" if self._as_ids else self.text(token_id)

    def text(self, token_id: int) -> str:
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
    """What JSON can hold; for minus infinity, which a token has that is impossible, msgspec would write null. Raises
    for NaN."""
    if logprob != logprob:
        raise ValueError("a log probability is NaN")
    return max(logprob, IMPOSSIBLE)


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
        self._prompt: Iterator[int] = iter(())  # tokens that have no log probabilities yet
        self._num_top = 0

    def open_prompt(self, token_ids: list[int], num_top: int) -> dict[str, list[Any]]:
        """The object for the first token of an echoed prompt, which has no log probabilities."""
        self._prompt, self._num_top = iter(token_ids), num_top
        first = next(self._prompt)
        name, offset = self._names.name(first), self._advance(first, is_shown=True)
        return {"tokens": [name], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [offset]}

    def add(
        self, token_ids: list[int], logprobs: list[TokenLogprobs], of_prompt: list[TokenLogprobs] | None = None
    ) -> dict[str, list[Any]]:
        """The object for the next tokens of the prompt and of the answer; offsets go on from the tokens before."""
        prompt_ids = [next(self._prompt) for _ in of_prompt or []]
        entries = [_shortened(entry, self._num_top) for entry in of_prompt or []] + logprobs
        both = prompt_ids + (token_ids if logprobs else [])
        offsets = [self._advance(token_id, is_shown=True) for token_id in prompt_ids]
        offsets += [self._advance(token_id, self._names.is_shown(token_id)) for token_id in both[len(prompt_ids) :]]
        return {
            "tokens": [self._names.name(token_id) for token_id in both],
            "token_logprobs": [_number(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(token_id, entry) for token_id, entry in zip(both, entries, strict=True)],
            "text_offset": offsets,
        }

    def _advance(self, token_id: int, is_shown: bool) -> int:
        """An echoed prompt is shown with its special tokens."""
        offset = self._offset
        if is_shown:
            self._offset += len(self._decoder.decode(self._names.bytes(token_id)))
        return offset

    def _top(self, token_id: int, entry: TokenLogprobs) -> dict[str, float]:
        """The best alternatives and the chosen token, which may not be one of them."""
        top_ids, values = [*entry.top_ids, token_id], [*entry.top_logprobs, entry.logprob]
        return {self._names.name(top_id): _number(value) for top_id, value in zip(top_ids, values, strict=True)}


class PromptLogprobs:
    """vLLM's list ``prompt_logprobs``: for each token of the prompt, itself and the likeliest by id; null first.
    ``num_top`` None: it was not asked for."""

    def __init__(self, names: TokenNames, prompt: list[int], num_top: int | None) -> None:
        self._names, self._num_top = names, num_top
        self._rest = iter(prompt[1:])
        self._collected = JoinedLists()
        if num_top is not None:
            self._collected.add({"prompt_logprobs": [None]})

    def add(self, logprobs: list[TokenLogprobs]) -> None:
        """Of the next tokens."""
        if self._num_top is not None:
            entries = [self._entry(next(self._rest), _shortened(one, self._num_top)) for one in logprobs]
            self._collected.add({"prompt_logprobs": entries})

    def whole(self) -> dict[str, Any]:
        """The field, if it was asked for."""
        return self._collected.whole() or {}

    def _entry(self, token_id: int, found: TokenLogprobs) -> dict[str, dict[str, Any]]:
        ids, logprobs = [token_id, *found.top_ids], [found.logprob, *found.top_logprobs]
        ranks = [found.rank, *range(1, len(found.top_ids) + 1)]
        entries: dict[str, dict[str, Any]] = {}
        for one, logprob, rank in zip(ids, logprobs, ranks, strict=True):
            fields = {"logprob": _number(logprob), "rank": rank, "decoded_token": self._names.text(one)}
            entries.setdefault(str(one), fields)
        return entries


def _shortened(logprobs: TokenLogprobs, num_top: int) -> TokenLogprobs:
    """With at most ``num_top`` alternatives: another field of the request may have asked for more."""
    top_ids, top_logprobs = logprobs.top_ids[:num_top], logprobs.top_logprobs[:num_top]
    return msgspec.structs.replace(logprobs, top_ids=top_ids, top_logprobs=top_logprobs)
