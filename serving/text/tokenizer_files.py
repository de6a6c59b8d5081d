"""The contents of a tokenizer's files as one value, of which another process can make the same tokenizer."""

from pathlib import Path
from typing import Any

import msgspec

from splitrank.models.json_file import read_json_object


class TokenizerFiles(msgspec.Struct, frozen=True):
    """The contents, and the names of the files for messages."""

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
    config = read_json_object(config_file, optional=True)
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


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid UTF-8: {error}") from None


def _config_template(config: dict[str, Any], file: Path) -> str | None:
    template = config.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    # Named templates; the one named "default" is for plain chats.
    named = template if isinstance(template, list) else [template]
    for index, entry in enumerate(named):
        fields = entry if isinstance(entry, dict) else {}
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("template"), str):
            raise ValueError(f"{file}: chat_template[{index}] has no name and template of type text")
    return next((entry["template"] for entry in named if entry["name"] == "default"), None)


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
