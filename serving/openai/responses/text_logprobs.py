"""Log probabilities of the texts in a response: of each text's tokens, in OpenAI's shape."""

from typing import Any

import msgspec

from splitrank.serving.openai.blocks import Block
from splitrank.serving.openai.logprobs import JoinedLists, TokenNames, chat_logprobs
from splitrank.serving.text.text_engine import TextOutput


class TextLogprobs:
    """``add`` an output, then ``take`` what a text gains with it. Text may lag behind its tokens: their log
    probabilities wait for it."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._waiting: list[dict[str, Any]] = []
        self._taken: dict[int, JoinedLists] = {}  # by the block's index

    def add(self, output: TextOutput) -> None:
        if output.logprobs is not None:
            token_ids = [output.token_ids[index] for index in output.text_positions]
            logprobs = [output.logprobs[index] for index in output.text_positions]
            self._waiting += chat_logprobs(self._names, token_ids, logprobs)

    def take(self, block: Block) -> list[dict[str, Any]]:
        """What waits, if the block is a text."""
        if block.kind != "text":
            return []
        entries, self._waiting = self._waiting, []
        if entries:
            self._taken.setdefault(block.index, JoinedLists()).add({"logprobs": entries})
        return entries

    def drop(self) -> None:
        """At a call: what waits is of white space and a tag before it, which no text shows."""
        self._waiting.clear()

    def whole(self, block: Block) -> list[Any] | msgspec.Raw:
        """All that a text took so far."""
        taken = self._taken.get(block.index)
        return ((taken.whole() or {}) if taken is not None else {}).get("logprobs", [])
