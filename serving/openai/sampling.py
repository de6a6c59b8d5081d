"""Makes ``SamplingParams`` of a request's fields; the checkpoint's defaults come next, then OpenAI's."""

import re
from typing import Any

import msgspec

from splitrank.serving.openai.errors import ApiError, bad_request, context_length_exceeded
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.openai.types import ChatBody, CommonBody, CompletionBody
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.seeds import derive_seed
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
_SAME_NAME = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "priority",
)


def sampling_params(
    body: ChatBody | CompletionBody,
    info: ModelInfo,
    settings: ApiSettings,
    num_prompt_tokens: int,
    grammar: str = "",
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> SamplingParams:
    """Checked parameters for one prompt. Raises ``ApiError`` 400 that names the field."""
    given = {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        given["top_k"] = 0 if body.top_k == -1 or body.top_k >= info.vocab_size else body.top_k  # 0: all
    given |= {
        "max_tokens": _max_tokens(body, info, num_prompt_tokens, settings.clip_max_tokens),
        "stop": (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        "stop_token_ids": _token_ids(body.stop_token_ids or [], info, "stop_token_ids"),
        "logit_bias": _logit_bias(body, info),
        "logprobs": _num_logprobs(body),
        "prompt_logprobs": max(
            (n for n in (body.prompt_logprobs, echoed_logprobs(body)) if n is not None), default=None
        ),
        "grammar": grammar,
        "bad_words_token_ids": bad_words,
        "allowed_token_ids": _allowed_ids(body, info, grammar),
    }
    values: dict[str, Any] = info.defaults | given
    try:
        return SamplingParams(**values)
    except ValueError as error:
        name = str(error).split()[0]
        raise bad_request(str(error), name if name in SamplingParams.__struct_fields__ else None) from None


def choice_params(params: SamplingParams, index: int) -> SamplingParams:
    """Parameters of the ``index``-th answer to one prompt: a seed of its own, derived from the request's."""
    if index == 0 or params.seed is None:
        return params
    return msgspec.structs.replace(params, seed=derive_seed(params.seed, index))


def check_token_ids(token_ids: list[int], info: ModelInfo, param: str) -> None:
    """Raises ``ApiError`` 400 for the first id outside the vocabulary."""
    for token_id in token_ids:
        if not 0 <= token_id < info.vocab_size:
            raise bad_request(f"{param}: token id {token_id} is not in 0..{info.vocab_size - 1}", param)


def _token_ids(token_ids: list[int], info: ModelInfo, param: str) -> tuple[int, ...]:
    check_token_ids(token_ids, info, param)
    return tuple(token_ids)


def bad_words_token_ids(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, at the beginning of a text and behind a space, as vLLM has it."""
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        if not word.strip():
            raise bad_request(f"bad_words[{index}] is empty", "bad_words")
        for text in (word.lstrip(), " " + word.lstrip()):
            try:
                found[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
            except ValueError as error:
                raise bad_request(f"bad_words[{index}]: {error}", "bad_words") from None
    return tuple(found)


def _allowed_ids(body: CommonBody, info: ModelInfo, grammar: str) -> tuple[int, ...]:
    if body.allowed_token_ids and grammar:
        raise bad_request("allowed_token_ids contradict a form: no allowed token may have it", "allowed_token_ids")
    return tuple(dict.fromkeys(_token_ids(body.allowed_token_ids or [], info, "allowed_token_ids")))


def asked_tokens(body: ChatBody | CompletionBody) -> int | None:
    """The longest answer that the request asks for."""
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return body.max_completion_tokens
    return body.max_tokens


def _max_tokens(body: ChatBody | CompletionBody, info: ModelInfo, num_prompt_tokens: int, clip: bool) -> int:
    room = info.max_model_len - num_prompt_tokens
    if isinstance(body, ChatBody):
        param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        prompt_param, default = "messages", room
    else:
        param, prompt_param, default = "max_tokens", "prompt", DEFAULT_COMPLETION_TOKENS
    asked = asked_tokens(body)
    if room < 1:
        raise context_length_exceeded(info.max_model_len, num_prompt_tokens, prompt_param)
    if asked is not None and asked > room and not clip:
        raise _no_room(info.max_model_len, num_prompt_tokens, asked, param)
    # For a prompt alone the engine samples one token, which is dropped.
    return min(default if asked is None else max(asked, 1), room)


def _no_room(max_model_len: int, num_prompt_tokens: int, asked: int, param: str) -> ApiError:
    message = (
        f"This model's maximum context length is {max_model_len} tokens, but you asked for "
        f"{num_prompt_tokens + asked} tokens: your prompt contains {num_prompt_tokens} tokens, "
        f"and {param} is {asked}."
    )
    return bad_request(message, param, "context_length_exceeded")


def _logit_bias(body: CommonBody, info: ModelInfo) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not re.fullmatch(r"[0-9]{1,18}", key, re.ASCII):
            raise bad_request(f"logit_bias: {key[:40]!r} is not a token id", "logit_bias")
        check_token_ids([int(key)], info, "logit_bias")
        bias[int(key)] = value
    return bias


def echoed_logprobs(body: ChatBody | CompletionBody) -> int | None:
    """How many log probabilities of each prompt token stand before those of the answer."""
    return body.logprobs if isinstance(body, CompletionBody) and body.echo else None


def _num_logprobs(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, CompletionBody):
        return body.logprobs
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None
