"""The two shapes of choices on the wire: chat messages and plain completions."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from splitrank.serving.openai.logprobs import CompletionLogprobs, JoinedLists, PromptLogprobs, TokenNames, chat_logprobs
from splitrank.serving.openai.requests import Generation, ParsedRequest, Prompt
from splitrank.serving.openai.tool_calls import call_delta, whole_calls
from splitrank.serving.protocol.messages import TokenLogprobs
from splitrank.serving.text.text_engine import TextOutput
from splitrank.serving.text.tokenizer import Tokenizer
from splitrank.serving.text.tool_calls import CallDelta


@dataclass
class Collected:
    """The outputs of one choice, joined."""

    pieces: list[str] = field(default_factory=list)
    reasoning_pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None  # from the prompt's second token on
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0
    is_thinking: bool = False
    calls: list[CallDelta] = field(default_factory=list)
    has_calls: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reasoning(self) -> str:
        return "".join(self.reasoning_pieces)

    def add(self, output: TextOutput) -> None:
        self.pieces.append(output.text)
        self.reasoning_pieces.append(output.reasoning)
        self.token_ids += output.token_ids
        if output.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += output.logprobs
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = (self.prompt_logprobs or []) + output.prompt_logprobs
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        self.num_cached_tokens = output.num_cached_tokens
        self.is_thinking = output.is_thinking
        self.calls += output.calls
        self.has_calls = output.has_calls


class ChoiceFormat(Protocol):
    """One choice of one request; its parts without ``index``, which the caller adds."""

    def collect(self, output: TextOutput) -> None:
        """Takes the log probabilities that ``whole`` will show: formatted at once, so that a long answer does not
        stop everybody when it ends."""

    def whole(self, answer: Collected) -> dict[str, Any]: ...

    def opening(self, is_needed: bool) -> dict[str, Any] | None:
        """First part of a stream, before any token; None: there is none, unless it ``is_needed`` to carry something."""

    def parts(self, output: TextOutput) -> list[dict[str, Any]]:
        """At least one; what belongs to the tokens and not to the text is in the last one."""

    def ending(self, output: TextOutput) -> dict[str, Any]:
        """Last part: the reason alone, without text."""


class ChatChoice:
    """Thoughts go by both names that clients look for: ``reasoning_content`` and ``reasoning``."""

    def __init__(self, names: TokenNames, prompt: Prompt, request: ParsedRequest) -> None:
        self._names = names
        self._collected = JoinedLists()
        self._of_prompt = PromptLogprobs(names, prompt.token_ids, request.prompt_logprobs)

    def collect(self, output: TextOutput) -> None:
        self._of_prompt.add(output.prompt_logprobs or [])
        if output.logprobs is not None:
            self._collected.add({"content": chat_logprobs(self._names, output.token_ids, output.logprobs)})

    def whole(self, answer: Collected) -> dict[str, Any]:
        # A thought that was cut off, or a call alone: there is no answer, not even an empty one.
        has_no_text = answer.is_thinking or (answer.calls and not answer.text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if has_no_text else answer.text,
            **_reasoning(answer.reasoning or None),
            "refusal": None,
        }
        if answer.calls:
            message["tool_calls"] = whole_calls(answer.calls)
        logprobs = self._collected.whole()
        shown = None if logprobs is None else {**logprobs, "refusal": None}
        return {"message": message, "logprobs": shown, **_reasons(answer), **self._of_prompt.whole()}

    def opening(self, is_needed: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def parts(self, output: TextOutput) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [_reasoning(output.reasoning)] if output.reasoning else []
        if output.text or not (deltas or output.calls):
            deltas.append({"content": output.text})
        deltas += [{"tool_calls": [call_delta(one)]} for one in output.calls]
        parts = [{"delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
        if output.logprobs is not None:
            content = chat_logprobs(self._names, output.token_ids, output.logprobs)
            parts[-1]["logprobs"] = {"content": content, "refusal": None}
        return parts

    def ending(self, output: TextOutput) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, **_reasons(output)}


class CompletionChoice:
    def __init__(self, names: TokenNames, prompt: Prompt, request: ParsedRequest) -> None:
        self._logprobs = CompletionLogprobs(names)
        self._echoed = prompt.text
        self._opening = None  # log probabilities of the prompt's first token: there are none
        self._collected = JoinedLists()
        self._of_prompt = PromptLogprobs(names, prompt.token_ids, request.prompt_logprobs)
        if request.echoed_logprobs is not None:
            self._opening = self._logprobs.open_prompt(prompt.token_ids, request.echoed_logprobs)
            self._collected.add(self._opening)

    def collect(self, output: TextOutput) -> None:
        self._of_prompt.add(output.prompt_logprobs or [])
        if (lists := self._lists(output)) is not None:
            self._collected.add(lists)

    def whole(self, answer: Collected) -> dict[str, Any]:
        shown = {"text": self._echoed + answer.text, "logprobs": self._collected.whole()}
        return {**shown, **_reasons(answer), **self._of_prompt.whole()}

    def opening(self, is_needed: bool) -> dict[str, Any] | None:
        is_needed = is_needed or bool(self._echoed)
        return {"text": self._echoed, "logprobs": self._opening, "finish_reason": None} if is_needed else None

    def parts(self, output: TextOutput) -> list[dict[str, Any]]:
        return [{"text": output.text, "logprobs": self._lists(output), "finish_reason": None}]

    def _lists(self, output: TextOutput) -> dict[str, list[Any]] | None:
        """Log probabilities of the prompt, if it is echoed with them, then those of the answer."""
        of_prompt = output.prompt_logprobs if self._opening is not None else None
        if output.logprobs is None and of_prompt is None:
            return None
        return self._logprobs.add(output.token_ids, output.logprobs or [], of_prompt or [])

    def ending(self, output: TextOutput) -> dict[str, Any]:
        return {"text": "", "logprobs": None, **_reasons(output)}


def choice_format(request: ParsedRequest, tokenizer: Tokenizer, generation: Generation) -> ChoiceFormat:
    kind = ChatChoice if request.kind == "chat" else CompletionChoice
    names = TokenNames(tokenizer, request.names_ids, request.form.shows_special)
    return kind(names, request.prompt_of(generation), request)


def _reasoning(text: str | None) -> dict[str, str | None]:
    return {"reasoning_content": text, "reasoning": text}


def _reasons(answer: Collected | TextOutput) -> dict[str, Any]:
    reason = answer.finish_reason
    if reason == "stop" and answer.has_calls:
        reason = "tool_calls"
    return {"finish_reason": reason, "stop_reason": answer.stop_reason}
