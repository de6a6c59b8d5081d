"""The files of a checkpoint that make its tokenizer, as one value: another process makes the same one of it."""

import json
from pathlib import Path
from typing import Any

import msgspec


class TokenizerFiles(msgspec.Struct, frozen=True):
    """Contents, and for messages where they were read."""

    tokenizer_file: str
    tokenizer_json: bytes
    template_file: str
    template: str | None
    special_tokens: dict[str, str]  # by the names that a template may use: "eos_token"


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """``tokenizer.json``, ``tokenizer_config.json``, and the template: ``chat_template.jinja``, else
    ``chat_template.json``, else the config's. Raises ``ValueError``, one line that names the file."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"no tokenizer: {folder} has no file tokenizer.json")
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json_object(config_file)
    special = {name: _token_text(value) for name, value in config.items() if name.endswith("_token")}
    if template_file.is_file():
        template: str | None = _read_text(template_file)
    elif (older_file := folder / "chat_template.json").is_file():
        template, template_file = _config_template(read_json_object(older_file), older_file), older_file
    else:
        template, template_file = _config_template(config, config_file), config_file
    return TokenizerFiles(
        tokenizer_file=str(file),
        tokenizer_json=file.read_bytes(),
        template_file=str(template_file),
        template=template,
        special_tokens={name: text for name, text in special.items() if text is not None},
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A checkpoint's side file: empty if it is missing, ``ValueError`` naming it if it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid UTF-8: {error}") from None


def _config_template(config: dict[str, Any], file: Path) -> str | None:
    template = config.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    # Named templates: the one for plain chats is called default.
    named = template if isinstance(template, list) else [template]
    for index, entry in enumerate(named):
        fields = entry if isinstance(entry, dict) else {}
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("template"), str):
            raise ValueError(f"{file}: chat_template[{index}] has no name and template of type text")
    return next((entry["template"] for entry in named if entry["name"] == "default"), None)


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
