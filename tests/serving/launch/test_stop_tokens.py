"""Which tokens end a text: the union of every file that names some, each form of them, and the line that says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.launch.stop_tokens import describe_stop_tokens, stop_tokens
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import write_tokenizer

GENERATION, CONFIG, TOKENIZER, MAP = (
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
VOCAB_SIZE = 384
END_OF_TEXT, IM_END = 379, 381


def folder_with(folder: Path, files: dict[str, Any]) -> Path:
    """The test tokenizer, whose own settings name no token, and these files."""
    write_tokenizer(folder, VOCAB_SIZE)
    (folder / GENERATION).unlink()
    (folder / TOKENIZER).write_text("{}")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


CASES: dict[str, tuple[dict[str, Any], dict[int, list[str]]]] = {
    "nothing": ({CONFIG: {}}, {}),
    "null everywhere": (
        {
            GENERATION: {"eos_token_id": None},
            CONFIG: {"eos_token_id": None, "text_config": {"eos_token_id": None}},
            TOKENIZER: {"eos_token": None},
        },
        {},
    ),
    "a list and a number": (
        {GENERATION: {"eos_token_id": [5, 3]}, CONFIG: {"eos_token_id": 9}},
        {5: [GENERATION], 3: [GENERATION], 9: [CONFIG]},
    ),
    "an empty list": ({GENERATION: {"eos_token_id": []}, CONFIG: {"eos_token_id": 0}}, {0: [CONFIG]}),
    "outer and inner": (
        {CONFIG: {"eos_token_id": 7, "text_config": {"eos_token_id": [9, 7]}}},
        {7: [CONFIG], 9: [CONFIG]},
    ),
    "text_config is no object": ({CONFIG: {"eos_token_id": 7, "text_config": 3}}, {7: [CONFIG]}),
    "the tokenizer alone": ({TOKENIZER: {"eos_token": "<|im_end|>"}}, {IM_END: [TOKENIZER]}),
    "the older form": ({TOKENIZER: {"eos_token": {"content": "<|im_end|>", "lstrip": False}}}, {IM_END: [TOKENIZER]}),
    "the map alone": ({MAP: {"eos_token": {"content": "<|endoftext|>"}}}, {END_OF_TEXT: [MAP]}),
    "a word of the vocabulary": ({TOKENIZER: {"eos_token": "a"}}, {64: [TOKENIZER]}),
    "a text that the tokenizer lacks": ({TOKENIZER: {"eos_token": "</s>"}}, {}),
    "endoftext in the configs, im_end in the tokenizer": (
        {
            GENERATION: {"eos_token_id": END_OF_TEXT},
            CONFIG: {"text_config": {"eos_token_id": END_OF_TEXT}},
            TOKENIZER: {"eos_token": "<|im_end|>"},
            MAP: {"eos_token": "<|im_end|>"},
        },
        {END_OF_TEXT: [GENERATION, CONFIG], IM_END: [TOKENIZER, MAP]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_union_of_all_files(tmp_path: Path, case: str) -> None:
    files, expected = CASES[case]
    assert stop_tokens(folder_with(tmp_path, files), VOCAB_SIZE) == expected


def test_without_a_tokenizer_the_configs_count(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"eos_token_id": 4}')
    (tmp_path / TOKENIZER).write_text('{"eos_token": "<|im_end|>"}')
    assert stop_tokens(tmp_path, VOCAB_SIZE) == {4: [CONFIG]}


@pytest.mark.parametrize("file", [GENERATION, CONFIG])
@pytest.mark.parametrize(
    "content",
    [
        '{"eos_token_id": "x"}',
        '{"eos_token_id": [true]}',
        '{"eos_token_id": 3.0}',
        "[]",
        "{",
        "[" * 100_000,
        '{"eos_token_id": -1}',
        '{"eos_token_id": [3, 384]}',
    ],
)
def test_a_broken_config_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder_with(tmp_path, {})
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"{file}: "):
        stop_tokens(tmp_path, VOCAB_SIZE)


@pytest.mark.parametrize("file", [TOKENIZER, MAP])
@pytest.mark.parametrize(
    "content", ['{"eos_token": 3}', '{"eos_token": ["</s>"]}', '{"eos_token": {"content": 3}}', "[]"]
)
def test_a_broken_token_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder_with(tmp_path, {})
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=f"{file}: "):
        stop_tokens(tmp_path, VOCAB_SIZE)


def test_a_tokenizer_of_another_form_is_named(tmp_path: Path) -> None:
    folder_with(tmp_path, {TOKENIZER: {"eos_token": "x"}, "tokenizer.json": {"added_tokens": [3]}})
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable tokenizer"):
        stop_tokens(tmp_path, VOCAB_SIZE)


def test_the_line_gives_ids_texts_and_files(tmp_path: Path) -> None:
    files = {GENERATION: {"eos_token_id": [END_OF_TEXT]}, TOKENIZER: {"eos_token": "<|im_end|>"}}
    found = stop_tokens(folder_with(tmp_path, files), VOCAB_SIZE)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert describe_stop_tokens(found, lambda token: tokenizer.token_bytes(token).decode()) == (
        "stop tokens: 379 '<|endoftext|>' (generation_config.json); 381 '<|im_end|>' (tokenizer_config.json)"
    )
    assert describe_stop_tokens({}, str).startswith("stop tokens: none is named by the checkpoint")
