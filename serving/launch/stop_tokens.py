"""The tokens that end a text: all that the files of a checkpoint name, and a line that says which and where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitrank.models.json_file import read_json_object

StopTokens = dict[int, list[str]]  # id -> the files that name it


def stop_tokens(folder: Path, vocab_size: int) -> StopTokens:
    """The union of what generation_config.json, config.json and the tokenizer's files name.

    A finetune often keeps only one of these files, or one that names ``<|endoftext|>`` alone, while its chats end with
    the tokenizer's ``<|im_end|>``. Raises ``ValueError`` that names the file for an id or a text of a wrong type.
    """
    found: StopTokens = {}
    for name in ("generation_config.json", "config.json"):
        raw = read_json_object(folder / name, optional=True)
        for holder in (raw, raw.get("text_config")):
            if isinstance(holder, dict):
                for token in _ids(folder / name, holder.get("eos_token_id"), vocab_size):
                    _add(found, token, name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        text = _text(folder / name, read_json_object(folder / name, optional=True).get("eos_token"))
        named = None if text is None else _token_id(folder, text)
        if named is not None:
            _add(found, named, name)
    return found


def describe_stop_tokens(found: StopTokens, text_of: Callable[[int], str]) -> str:
    """One line: ids with their text, and the files that name them."""
    if not found:
        return "stop tokens: none is named by the checkpoint; an answer ends at its length or a stop string"
    tokens = (f"{token} {text_of(token)!r} ({', '.join(files)})" for token, files in found.items())
    return f"stop tokens: {'; '.join(tokens)}"


def _add(found: StopTokens, token: int, file: str) -> None:
    files = found.setdefault(token, [])
    if file not in files:
        files.append(file)


def _ids(file: Path, value: Any, vocab_size: int) -> list[int]:
    """A number, a list of them, or nothing."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise ValueError(f"{file}: eos_token_id must be a token id or a list of them, not {value!r}")
    if ids and max(ids) >= vocab_size:
        raise ValueError(f"{file}: eos_token_id {max(ids)} is not in the vocabulary of {vocab_size}")
    return ids


def _text(file: Path, value: Any) -> str | None:
    """A token's text, or the object that older files wrap it in."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{file}: eos_token must be a token's text, not {value!r}")
    return text


def _token_id(folder: Path, text: str) -> int | None:
    """Id of a token in tokenizer.json; None if it has no such token, which then cannot end a text."""
    file = folder / "tokenizer.json"
    raw = read_json_object(file, optional=True)
    try:
        added: dict[str, int] = {token["content"]: token["id"] for token in raw.get("added_tokens") or ()}
        vocabulary = raw.get("model", {}).get("vocab")
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is not a readable tokenizer: its added_tokens or its model are malformed") from None
    return added.get(text, vocabulary.get(text) if isinstance(vocabulary, dict) else None)
