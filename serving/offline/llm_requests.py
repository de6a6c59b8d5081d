"""Checks the prompts and parameters that users give to ``LLM``; makes token ids of them. Raises ``ValueError``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.sampling import DEFAULT_COMPLETION_TOKENS, check_token_ids
from splitrank.serving.options.checked import as_type, check_text, shown
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.chat_template import check_variables
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.tokenizer import Tokenizer

Message = dict[str, Any]
PROMPT_KEYS: dict[str, Any] = {"prompt": str, "prompt_token_ids": list[int]}
Prompt = str | Sequence[int] | Mapping[str, Any]
Prompts = str | Mapping[str, Any] | Iterable[Prompt]
Conversations = Sequence[Message] | Sequence[Sequence[Message]]
Params = SamplingParams | Sequence[SamplingParams] | None


def encode_prompts(prompts: Prompts, tokenizer: Tokenizer, info: ModelInfo) -> list[list[int]]:
    """Token ids of each prompt, at least one and fewer than the context holds."""
    if isinstance(prompts, str | Mapping):
        prompts = [prompts]
    elif not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a list of them or one, not {shown(prompts)}")
    encoded = [_encode_prompt(f"prompt {index}", prompt, tokenizer) for index, prompt in enumerate(prompts)]
    _check_prompts(encoded, info)
    return encoded


def _encode_prompt(name: str, prompt: Any, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, Mapping):
        prompt = _only_value(name, prompt)
    if isinstance(prompt, str):
        check_text(name, prompt)
        return tokenizer.encode(prompt)
    try:
        token_ids: list[int] = as_type(name, prompt, list[int])
    except ValueError:
        raise ValueError(f"{name} is neither text nor a list of token ids: {shown(prompt)}") from None
    return token_ids


def _only_value(name: str, prompt: Mapping[str, Any]) -> Any:
    """The value of a prompt that is a dictionary."""
    for key in prompt:
        if key not in PROMPT_KEYS:
            raise ValueError(f"{name}: unknown key {shown(key)}; a prompt's keys are {' and '.join(PROMPT_KEYS)}")
    if len(prompt) != 1:
        raise ValueError(f"{name} must have either {' or '.join(PROMPT_KEYS)}")
    [(key, value)] = prompt.items()
    return as_type(f"{name}: {key}", value, PROMPT_KEYS[key])


def encode_conversations(
    conversations: Conversations, tokenizer: Tokenizer, info: ModelInfo, variables: dict[str, Any] | None
) -> list[list[int]]:
    """Like ``encode_prompts``, for one list of messages or several."""
    check_variables(variables or {})
    listed: list[Any] = list(conversations)
    if listed and isinstance(listed[0], dict):
        listed = [listed]
    encoded = []
    for index, messages in enumerate(listed):
        try:
            encoded.append(tokenizer.encode_chat([dict(message) for message in messages], variables))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"prompt {index}: the messages cannot be rendered: {error}") from None
    _check_prompts(encoded, info)
    return encoded


def _check_prompts(encoded: list[list[int]], info: ModelInfo) -> None:
    for index, prompt in enumerate(encoded):
        if not 0 < len(prompt) < info.max_model_len:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; the context holds 1 to {info.max_model_len - 1}"
            )
        _check_ids(prompt, info, f"prompt {index}")


def completion_params(encoded: list[list[int]], params: Params, info: ModelInfo) -> list[SamplingParams]:
    """One for each prompt; None means the model's defaults and 16 tokens, as in the completions API."""
    return _listed(encoded, params, info, DEFAULT_COMPLETION_TOKENS)


def chat_params(encoded: list[list[int]], params: Params, info: ModelInfo) -> list[SamplingParams]:
    """One for each prompt; None means the model's defaults and all tokens that the context leaves."""
    return _listed(encoded, params, info, info.max_model_len)


def _listed(encoded: list[list[int]], params: Params, info: ModelInfo, default_max_tokens: int) -> list[SamplingParams]:
    if params is None:
        rooms = [min(default_max_tokens, info.max_model_len - len(prompt)) for prompt in encoded]
        return [msgspec.convert({**info.defaults, "max_tokens": room}, SamplingParams) for room in rooms]
    if isinstance(params, SamplingParams):
        listed = [params] * len(encoded)
    elif isinstance(params, Sequence):
        listed = list(params)
    else:
        raise ValueError(f"params must be SamplingParams, one or a list of them, not {shown(params)}")
    if len(listed) != len(encoded):
        raise ValueError(f"{len(encoded)} prompts, but params for {len(listed)}")
    for index, (prompt, wanted) in enumerate(zip(encoded, listed, strict=True)):
        _check_params(index, len(prompt), wanted, info)
    return listed


def _check_params(index: int, num_prompt_tokens: int, params: SamplingParams, info: ModelInfo) -> None:
    if not isinstance(params, SamplingParams):
        raise ValueError(f"params {index} must be SamplingParams, not {shown(params)}")
    if num_prompt_tokens + params.max_tokens > info.max_model_len:
        raise ValueError(
            f"prompt {index} has {num_prompt_tokens} tokens and max_tokens is {params.max_tokens}; "
            f"the context holds {info.max_model_len} in all"
        )
    _check_ids([*params.stop_token_ids], info, f"stop_token_ids of prompt {index}")
    _check_ids([*params.logit_bias], info, f"logit_bias of prompt {index}")
    _check_ids([*params.allowed_token_ids], info, f"allowed_token_ids of prompt {index}")
    bad_ids = [token for word in params.bad_words_token_ids for token in word]
    _check_ids(bad_ids, info, f"bad_words_token_ids of prompt {index}")


def _check_ids(token_ids: list[int], info: ModelInfo, what: str) -> None:
    try:
        check_token_ids(token_ids, info, what)
    except ApiError as error:
        raise ValueError(error.message) from None
