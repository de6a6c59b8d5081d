"""Token ids to text, one request at a time: whole characters only, no stop string, thoughts and tool calls apart.

``push`` of every token and one ``finish`` give, joined, the decode of all ids up to the stop, however they are split.
"""

from dataclasses import dataclass
from typing import NamedTuple

import tokenizers
from tokenizers.decoders import DecodeStream

from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.marked_text import MarkerFinder
from splitrank.serving.text.thinking import ThinkingSplitter
from splitrank.serving.text.tokenizer import Tokenizer
from splitrank.serving.text.tool_calls import CALL_OPENING, CallDelta, CallForm, ToolCallParser

# A character has at most 4 bytes, so at most 4 tokens wait for their end. More waiting ids are undecodable, and
# DecodeStream decodes all of them again at each step.
MAX_PENDING = 8


class IncrementalDecoder:
    """``DecodeStream`` with guards: it ends a cut last character, bounds what waits, and survives its own errors."""

    def __init__(self, backend: tokenizers.Tokenizer, shows_special: bool = False) -> None:
        self._backend = backend
        self._skips_special = not shows_special
        self._stream = DecodeStream(skip_special_tokens=self._skips_special)
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that this token completes; often empty."""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception:  # "Invalid prefix": a bare Exception, and the stream is of no use after it
            return self.finish()
        if text is not None:
            self._pending.clear()
            return text
        return self._release_undecodable() if len(self._pending) >= MAX_PENDING else ""

    def finish(self) -> str:
        """Text of the ids that still wait; a cut character shows as U+FFFD, as in the decode of all."""
        text = self._decode(self._pending)
        self._restart([])
        return text

    def _release_undecodable(self) -> str:
        pending, whole = self._pending, self._decode(self._pending)
        for keep in range(1, 5):
            text = self._decode(pending[:-keep])
            # Joined and apart agree only where no character crosses the cut.
            if text + self._decode(pending[-keep:]) == whole:
                self._restart(pending[-keep:])
                return text
        return self.finish()

    def _restart(self, token_ids: list[int]) -> None:
        self._stream = DecodeStream(skip_special_tokens=self._skips_special)
        self._pending = list(token_ids)
        for token_id in token_ids:
            text = self._stream.step(self._backend, token_id)
            assert text is None, "an id that waited for its end had text of its own"

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=self._skips_special)


class StopStringFinder:
    """Cuts text at the first stop string to be completed, and holds back what may become one."""

    def __init__(self, stop: tuple[str, ...], include_match: bool = False) -> None:
        self._finder = MarkerFinder(stop)
        self._include_match = include_match

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that may be shown, and the stop string that ended it."""
        shown, stop, _ = self._finder.push(text)
        return (shown + stop if stop is not None and self._include_match else shown), stop

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        return self._finder.finish()


@dataclass(frozen=True)
class TextForm:
    """How the text of one answer is read. ``thinking``: it begins inside ``<think>``. ``calls``: calls of tools are
    parted from it, and if ``parts_thinking``, thoughts are, too. ``shows_special``: special tokens show their names."""

    thinking: bool = False
    calls: CallForm | None = None
    shows_special: bool = False
    parts_thinking: bool = True


PLAIN_TEXT = TextForm()


class ShownText(NamedTuple):
    """What some tokens add. ``has_ended``: by the stop string ``stop``, or by the only tool call that is allowed (then
    push no more)."""

    reasoning: str
    text: str
    calls: list[CallDelta]
    has_ended: bool = False
    stop: str | None = None


def joined(pieces: list[ShownText]) -> ShownText:
    """Successive pieces as one; nothing ended before the last of them."""
    if not pieces:
        return ShownText("", "", [])
    return ShownText(
        "".join([piece.reasoning for piece in pieces]),
        "".join([piece.text for piece in pieces]),
        [delta for piece in pieces for delta in piece.calls],
        pieces[-1].has_ended,
        pieces[-1].stop,
    )


class Detokenizer:
    """Decoder, thoughts, stop strings and tool calls of one request.

    Stop strings count in the answer with its calls, not in thoughts, and after the first ``min_tokens`` tokens.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, form: TextForm) -> None:
        self._decoder = IncrementalDecoder(tokenizer.backend, form.shows_special)
        opening = CALL_OPENING if form.calls is not None else ""
        self._splitter = ThinkingSplitter(form.thinking and form.parts_thinking, opening)
        # Thoughts that stay in the answer are counted all the same.
        self._counter = self._splitter if form.parts_thinking else ThinkingSplitter(form.thinking, opening)
        self._calls = None if form.calls is None else ToolCallParser(form.calls)
        self._finder = StopStringFinder(params.stop, params.include_stop_str_in_output)
        self._num_unchecked = params.min_tokens
        self.num_reasoning_tokens = 0  # up to the end of thinking, its tag included

    @property
    def is_thinking(self) -> bool:
        return self._splitter.is_thinking

    @property
    def is_in_text(self) -> bool:
        """Inside of neither a thought nor a call."""
        return not self._counter.is_thinking and (self._calls is None or self._calls.is_in_text)

    @property
    def has_calls(self) -> bool:
        """Whether the answer called tools, and each call came to its end."""
        return self._calls is not None and self._calls.num_calls > 0 and not self._calls.is_inside_call

    def push(self, token_id: int) -> ShownText:
        is_thought = self._counter.is_thinking
        self.num_reasoning_tokens += is_thought
        decoded = self._decoder.push(token_id)
        if is_thought and self._counter is not self._splitter:
            self._counter.push(decoded)
        reasoning, text = self._splitter.push(decoded)
        stop = None
        if self._num_unchecked > 0:
            self._num_unchecked -= 1
        else:
            text, stop = self._finder.push(text)
        return self._shown(reasoning, text, stop, is_cut=stop is not None)

    def finish(self, is_cut: bool = False) -> ShownText:
        """The rest, when the engine ended the request; a stop string may still complete in it. ``is_cut``: not the
        model ended it."""
        reasoning, text = self._splitter.push(self._decoder.finish())
        reasoning += self._splitter.finish()
        text, stop = self._finder.push(text)
        text += self._finder.finish()
        return self._shown(reasoning, text, stop, is_cut=is_cut or stop is not None, is_last=True)

    def _shown(self, reasoning: str, text: str, stop: str | None, is_cut: bool, is_last: bool = False) -> ShownText:
        if self._calls is None:
            return ShownText(reasoning, text, [], stop is not None, stop)
        self._calls.push(text)
        has_ended = stop is not None or self._calls.has_ended
        if is_last or stop is not None:
            self._calls.finish(is_cut)
        return ShownText(reasoning, *self._calls.take(), has_ended, stop)
