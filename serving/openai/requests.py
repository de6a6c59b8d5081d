"""Checked requests: what the service runs. They cross from the parse workers as msgpack."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.seeds import with_seed
from splitrank.serving.text.detokenizer import PLAIN_TEXT, TextForm

Kind = Literal["chat", "completion", "response", "message"]


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    text: str  # shown by echo; empty without it
    is_thinking: bool = False  # it ends inside <think>


@dataclass(frozen=True)
class Generation:
    """One choice of the answer: one request to the engine."""

    index: int
    prompt: int  # which of the request's prompts
    params: SamplingParams


@dataclass(frozen=True)
class ParsedRequest:
    """``usage_in_chunks``: in each one of a stream. ``names_ids``: log probabilities name tokens by id.
    ``prompt_logprobs`` and ``echoed_logprobs``: how many of each prompt token, in vLLM's form and among those of the
    answer. Without ``has_answer`` only the prompt is wanted; the engine's one token is dropped."""

    kind: Kind
    prompts: tuple[Prompt, ...]
    generations: tuple[Generation, ...]
    stream: bool = False
    include_usage: bool = False
    usage_in_chunks: bool = False
    return_token_ids: bool = False
    names_ids: bool = False
    prompt_logprobs: int | None = None
    echoed_logprobs: int | None = None
    has_answer: bool = True
    form: TextForm = PLAIN_TEXT
    echo: dict[str, Any] = field(default_factory=dict)  # what the answer repeats of the request

    def with_seeds(self, *parts: int | str) -> "ParsedRequest":
        """Choices that have no seed get one, made of ``parts`` and of their index."""
        seeded = [replace(one, params=with_seed(one.params, *parts, one.index)) for one in self.generations]
        return replace(self, generations=tuple(seeded))

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def prompt_of(self, generation: Generation) -> Prompt:
        return self.prompts[generation.prompt]


@dataclass(frozen=True)
class DirectAnswer:
    """The body of an answer that needs no engine; JSON if a parse worker has made it."""

    body: dict[str, Any] | msgspec.Raw
