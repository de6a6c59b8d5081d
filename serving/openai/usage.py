"""Counts the tokens of one request, and the time until they came."""

import time
from collections import Counter
from typing import Any

from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.text.text_engine import TextOutput


class Usage:
    """``add`` every output of every choice; ``whole`` is the API's object ``usage``."""

    def __init__(self, request: ParsedRequest) -> None:
        self._request = request
        self._num_tokens = 0
        self._num_cached = [0] * len(request.generations)
        self._num_reasoning = [0] * len(request.generations)
        self._reasons: list[str] = []
        self._began = time.monotonic()
        self._first_s: float | None = None

    def add(self, index: int, output: TextOutput) -> None:
        """``index`` of the choice."""
        self._num_tokens += len(output.token_ids)
        self._num_cached[index] = output.num_cached_tokens
        self._num_reasoning[index] = output.num_reasoning_tokens
        if self._first_s is None and output.token_ids:
            self._first_s = time.monotonic() - self._began
        if output.finish_reason is not None:
            self._reasons.append(output.finish_reason)

    def summary(self) -> str:
        """For a log: tokens in and out, time to the first of them, and how the choices ended."""
        first = "none came" if self._first_s is None else f"the first after {self._first_s:.3f} s"
        open_choices = len(self._request.generations) - len(self._reasons)
        counts = Counter(["not finished"] * open_choices + self._reasons)
        ends = ", ".join(reason if count == 1 else f"{count} x {reason}" for reason, count in counts.items())
        return f"{self._request.num_prompt_tokens}+{self._num_tokens} tokens, {first}, {ends}"

    def whole(self) -> dict[str, Any]:
        """Choices of one prompt count it once, with what all of them had of it in the cache."""
        cached: dict[int, int] = {}
        for generation, count in zip(self._request.generations, self._num_cached, strict=True):
            cached[generation.prompt] = min(count, cached.get(generation.prompt, count))
        return {
            "prompt_tokens": self._request.num_prompt_tokens,
            "completion_tokens": self._num_tokens,
            "total_tokens": self._request.num_prompt_tokens + self._num_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
            "completion_tokens_details": {"reasoning_tokens": sum(self._num_reasoning)},
        }
