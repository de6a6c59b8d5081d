"""Refuses fields that this server does not support, unless their value changes nothing. None is ignored silently."""

from collections.abc import Mapping
from typing import Any

import msgspec

from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.strict_json import nearest
from splitrank.serving.openai.types import ChatBody, CompletionBody, StreamOptions

Harmless = Mapping[str, tuple[Any, ...]]

# Labels for the provider's records: no value of them changes an answer.
_LABELS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
    }
)
# By name: the values that change nothing (null is one for all). A name that is not in this file is refused, too.
_BOTH: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "dry_multiplier": (0,),
    "ebnf": (),
    "early_stopping": (False,),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "min_new_tokens": (0,),
    "mirostat": (0,),
    "no_repeat_ngram_size": (0,),
    "no_stop_trim": (False,),
    "regex": (),
    "repeat_penalty": (1,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([],),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
_CHAT: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION: dict[str, tuple[Any, ...]] = {
    "separate_reasoning": (False,),
    "max_completion_tokens": (),
    "prompt_embeds": (),
    "suffix": ("",),
    "top_logprobs": (),
}
_STREAM_OPTIONS: dict[str, tuple[Any, ...]] = {"include_obfuscation": (False,)}
# Of a message, only what would change the prompt: clients send back whatever an answer had, annotations and the like.
_MESSAGE: dict[str, tuple[Any, ...]] = {"audio": (), "function_call": (), "partial": (False,), "prefix": (False,)}


def refuse_unsupported(body: dict[str, Any], is_chat: bool) -> None:
    """Raises ``ApiError`` 400 that names the first field whose value would have to be ignored."""
    obeyed = (ChatBody if is_chat else CompletionBody).__struct_fields__
    _refuse(body, _BOTH | (_CHAT if is_chat else _COMPLETION), obeyed, "")
    if isinstance(options := body.get("stream_options"), dict):
        _refuse(options, _STREAM_OPTIONS, StreamOptions.__struct_fields__, "stream_options.")
    messages = body.get("messages")
    for index, message in enumerate(messages if is_chat and isinstance(messages, list) else []):
        if isinstance(message, dict):
            asked = {name: message[name] for name in message.keys() & _MESSAGE.keys()}
            _refuse(asked, _MESSAGE, (), f"messages[{index}].")


def refuse_others(body: dict[str, Any], body_type: type[msgspec.Struct], harmless: Harmless) -> None:
    """As ``refuse_unsupported``, for a body of any other API: only ``harmless`` values of what its type lacks."""
    _refuse(body, harmless, body_type.__struct_fields__, "")


def _refuse(values: dict[str, Any], harmless: Harmless, obeyed: tuple[str, ...], path: str) -> None:
    for name, value in values.items():
        if name in obeyed or name in _LABELS or _is_harmless(value, harmless.get(name, ())):
            continue
        hint = _hint(name) if name in harmless else nearest(name, obeyed)
        raise bad_request(f"{path}{name[:40]} is not supported{hint}", path + name[:40], "unsupported_value")


def _is_harmless(value: Any, harmless: tuple[Any, ...]) -> bool:
    # 1 == True in Python, and not in JSON.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless
    )


def _hint(name: str) -> str:
    match name:
        case "max_completion_tokens":
            return " for completions; use max_tokens"
        case "repeat_penalty":
            return "; use repetition_penalty"
        case "regex" | "ebnf" | "json_schema":
            return "; use structured_outputs"
        case _:
            return " by this server"
