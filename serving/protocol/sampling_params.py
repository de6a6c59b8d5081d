"""Sampling and stopping parameters of a request. They are checked once, where they are made."""

from typing import Any, get_type_hints

import msgspec

from splitrank.serving.options.checked import INT64_MAX, Bounds, as_type, check_text


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sampling and stopping of one request. A value that the engine would refuse to decode is a ``ValueError`` here.
    Values are converted if nothing is lost (see ``checked``); ``stop`` may be one string.

    ``temperature`` 0 is greedy. ``top_k`` 0 keeps all tokens; -1 becomes 0. ``logprobs`` None returns none; n returns
    those of the chosen token and of the n best ones (natural log, of the model's own distribution before temperature
    and penalties). ``prompt_logprobs``: the same of the prompt's tokens, from the second one on. ``grammar``, of
    llguidance's syntax, says which texts an answer may be; empty: any. An answer has none of ``bad_words_token_ids``,
    and no token outside ``allowed_token_ids`` (empty: all are allowed). Requests of a lower ``priority`` number go
    first. The detokenizer finds ``stop`` strings; the sampler and the engine apply everything else.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    priority: int = 0

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            value, default = getattr(self, name), _DEFAULTS[name]
            if type(value) is not type(default) or value != default:
                msgspec.structs.force_setattr(self, name, _checked(name, value, kind))
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens must be at most max_tokens = {self.max_tokens}, not {self.min_tokens}")
        for token, bias in self.logit_bias.items():
            _BIAS.check(f"logit_bias of token {token}", bias)
        for text in self.stop:
            if not text:
                raise ValueError("stop must not hold an empty string")
            check_text("stop", text)
        check_text("grammar", self.grammar)
        for word in self.bad_words_token_ids:
            if not word or min(word) < 0:
                raise ValueError(f"bad_words_token_ids must hold lists of token ids, not {list(word)}")


_TYPES = get_type_hints(SamplingParams)
# As most requests have them. A dictionary has a factory instead, so it is always checked, and copied.
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(SamplingParams)}
BOUNDS = {  # of each number in the field; of a dictionary's keys
    "max_tokens": Bounds(1, INT64_MAX),
    "min_tokens": Bounds(0, INT64_MAX),
    "temperature": Bounds(0, 2),
    "top_k": Bounds(0, INT64_MAX),
    "top_p": Bounds(0, 1, above=True),
    "min_p": Bounds(0, 1),
    "seed": Bounds(-INT64_MAX - 1, INT64_MAX),
    "repetition_penalty": Bounds(0, 100, above=True),
    "presence_penalty": Bounds(-2, 2),
    "frequency_penalty": Bounds(-2, 2),
    "logit_bias": Bounds(0, INT64_MAX),
    "stop_token_ids": Bounds(0, INT64_MAX),
    "logprobs": Bounds(0, 20),
    "prompt_logprobs": Bounds(0, 20),
    "allowed_token_ids": Bounds(0, INT64_MAX),
    "priority": Bounds(-INT64_MAX - 1, INT64_MAX),
}
_BIAS = Bounds(-100, 100)


def _checked(name: str, value: Any, kind: Any) -> Any:
    if name == "stop" and isinstance(value, str):
        value = (value,)
    value = as_type(name, value, kind)
    if name == "top_k" and value == -1:
        value = 0
    if name in BOUNDS and value is not None:
        for number in value if isinstance(value, tuple | dict) else (value,):
            BOUNDS[name].check(name, number)
    return value
