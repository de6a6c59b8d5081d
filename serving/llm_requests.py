"""What users of ``LLM`` hand over, checked and made into token ids and parameters. Mistakes are ``ValueError``."""

from collections.abc import Sequence
from typing import Any

import msgspec

from splitrank.serving.model_info import ModelInfo
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.sampling import DEFAULT_COMPLETION_TOKENS, check_token_ids
from splitrank.serving.sampling_params import SamplingParams
from splitrank.serving.tokenizer import Tokenizer

Message = dict[str, Any]
Prompts = str | Sequence[str] | Sequence[list[int]]
Conversations = Sequence[Message] | Sequence[Sequence[Message]]
Params = SamplingParams | Sequence[SamplingParams] | None


def encode_prompts(prompts: Prompts, tokenizer: Tokenizer, info: ModelInfo) -> list[list[int]]:
    """Token ids of each prompt, at least one and fewer than the context holds."""
    listed: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    encoded = [_encode_prompt(index, prompt, tokenizer) for index, prompt in enumerate(listed)]
    _check_prompts(encoded, info)
    return encoded


def _encode_prompt(index: int, prompt: Any, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if not isinstance(prompt, (list, tuple)) or any(type(token) is not int for token in prompt):
        raise ValueError(f"prompt {index} is neither text nor a list of token ids: {prompt!r:.80}")
    return list(prompt)


def encode_conversations(
    conversations: Conversations, tokenizer: Tokenizer, info: ModelInfo, variables: dict[str, Any] | None
) -> list[list[int]]:
    """As ``encode_prompts``, for one list of messages or several."""
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
    """One for each prompt; None is the model's defaults and a few tokens, as the completions API has it."""
    return _listed(encoded, params, info, DEFAULT_COMPLETION_TOKENS)


def chat_params(encoded: list[list[int]], params: Params, info: ModelInfo) -> list[SamplingParams]:
    """One for each prompt; None is the model's defaults and all tokens that the context leaves."""
    return _listed(encoded, params, info, info.max_model_len)


def _listed(encoded: list[list[int]], params: Params, info: ModelInfo, default_max_tokens: int) -> list[SamplingParams]:
    if params is None:
        rooms = [min(default_max_tokens, info.max_model_len - len(prompt)) for prompt in encoded]
        return [msgspec.convert({**info.defaults, "max_tokens": room}, SamplingParams) for room in rooms]
    listed = [params] * len(encoded) if isinstance(params, SamplingParams) else list(params)
    if len(listed) != len(encoded):
        raise ValueError(f"{len(encoded)} prompts, but params for {len(listed)}")
    for index, (prompt, wanted) in enumerate(zip(encoded, listed, strict=True)):
        _check_params(index, len(prompt), wanted, info)
    return listed


def _check_params(index: int, num_prompt_tokens: int, params: SamplingParams, info: ModelInfo) -> None:
    if num_prompt_tokens + params.max_tokens > info.max_model_len:
        raise ValueError(
            f"prompt {index} has {num_prompt_tokens} tokens and max_tokens is {params.max_tokens}; "
            f"the context holds {info.max_model_len} in all"
        )
    _check_ids([*params.stop_token_ids], info, f"stop_token_ids of prompt {index}")
    _check_ids([*params.logit_bias], info, f"logit_bias of prompt {index}")


def _check_ids(token_ids: list[int], info: ModelInfo, what: str) -> None:
    try:
        check_token_ids(token_ids, info, what)
    except ApiError as error:
        raise ValueError(error.message) from None
