"""Fields that other servers obey and this one does not: refused unless their value asks for nothing."""

from typing import Any

from splitrank.serving.openai.errors import bad_request

# Name: the values that ask for nothing (null always does). A value that asks for something is never ignored.
_BOTH: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "ebnf": (),
    "early_stopping": (False,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_path": (),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "no_stop_trim": (False,),
    "priority": (0,),
    "prompt_logprobs": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_regex": ([],),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
}
_CHAT: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "max_completion_tokens": (),
    "prompt_embeds": (),
    "suffix": ("",),
    "top_logprobs": (),
}
_CHAT_FIELDS = _BOTH | _CHAT
_COMPLETION_FIELDS = _BOTH | _COMPLETION


def refuse_unsupported(body: dict[str, Any], is_chat: bool) -> None:
    """Raises ``ApiError`` 400 that names the first field whose value would have to be ignored."""
    fields = _CHAT_FIELDS if is_chat else _COMPLETION_FIELDS
    for name, value in body.items():
        if name in fields and not _asks_nothing(value, fields[name]):
            raise bad_request(f"{name} is not supported{_hint(name)}", name, "unsupported_value")


def _asks_nothing(value: Any, harmless: tuple[Any, ...]) -> bool:
    # 1 == True in Python, and not in JSON.
    return value is None or any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless
    )


def _hint(name: str) -> str:
    match name:
        case "reasoning_effort":
            return '; chat_template_kwargs {"enable_thinking": false} turns thinking off'
        case "max_completion_tokens":
            return " for completions; use max_tokens"
        case "response_format":
            return ' with any type but "text"'
        case _:
            return " by this server"
