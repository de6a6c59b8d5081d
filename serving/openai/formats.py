"""The two shapes of choices on the wire: chat messages and plain completions."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from splitrank.serving.messages import TokenLogprobs
from splitrank.serving.openai.logprobs import CompletionLogprobs, chat_logprobs
from splitrank.serving.openai.parser import Generation, ParsedRequest, Prompt
from splitrank.serving.text_engine import TextOutput
from splitrank.serving.tokenizer import Tokenizer


@dataclass
class Collected:
    """The outputs of one choice, joined."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0

    def add(self, output: TextOutput) -> None:
        self.text += output.text
        self.token_ids += output.token_ids
        if output.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *output.logprobs]
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        self.num_cached_tokens = output.num_cached_tokens


class ChoiceFormat(Protocol):
    """One choice of one request; its parts without ``index``, which the caller adds."""

    def whole(self, answer: Collected) -> dict[str, Any]: ...

    def opening(self) -> dict[str, Any] | None:
        """First part of a stream, before any token; None: there is none."""

    def part(self, output: TextOutput) -> dict[str, Any]: ...

    def ending(self, output: TextOutput) -> dict[str, Any]:
        """Last part: the reason alone, without text."""


class ChatChoice:
    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._tokenizer = tokenizer

    def whole(self, answer: Collected) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(answer), **_reasons(answer)}

    def opening(self) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def part(self, output: TextOutput) -> dict[str, Any]:
        return {"delta": {"content": output.text}, "logprobs": self._logprobs(output), "finish_reason": None}

    def ending(self, output: TextOutput) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, **_reasons(output)}

    def _logprobs(self, output: Collected | TextOutput) -> dict[str, Any] | None:
        if output.logprobs is None:
            return None
        return chat_logprobs(self._tokenizer, output.token_ids, output.logprobs)


class CompletionChoice:
    def __init__(self, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._logprobs = CompletionLogprobs(tokenizer)
        self._echoed = prompt.text

    def whole(self, answer: Collected) -> dict[str, Any]:
        return {"text": self._echoed + answer.text, "logprobs": self._added(answer), **_reasons(answer)}

    def opening(self) -> dict[str, Any] | None:
        return {"text": self._echoed, "logprobs": None, "finish_reason": None} if self._echoed else None

    def part(self, output: TextOutput) -> dict[str, Any]:
        return {"text": output.text, "logprobs": self._added(output), "finish_reason": None}

    def ending(self, output: TextOutput) -> dict[str, Any]:
        return {"text": "", "logprobs": None, **_reasons(output)}

    def _added(self, output: Collected | TextOutput) -> dict[str, Any] | None:
        return None if output.logprobs is None else self._logprobs.add(output.token_ids, output.logprobs)


def choice_format(request: ParsedRequest, tokenizer: Tokenizer, generation: Generation) -> ChoiceFormat:
    kind = ChatChoice if request.kind == "chat" else CompletionChoice
    return kind(tokenizer, request.prompt_of(generation))


def _reasons(answer: Collected | TextOutput) -> dict[str, Any]:
    return {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
