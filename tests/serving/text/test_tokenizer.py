"""Tokenizer and chat template against ``transformers``, and what each refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from splitrank.serving.text.chat_messages import ChatTemplateError
from splitrank.serving.text.chat_template import ChatTemplate, Ending, check_variables
from splitrank.serving.text.tokenizer import Tokenizer, check_vocabulary
from tests.support.qwen_template import QWEN_TEMPLATE
from tests.support.tiny_tokenizer import write_tokenizer

USER = {"role": "user", "content": 'What is 2 < 3 & "why"?'}
ARGUMENTS = {"a": 1, "b": "zwölf", "c": [1]}
TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": " be brief "}, USER, {"role": "assistant", "content": "Yes. 世界"}, USER],
    [USER, {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}, {"role": "tool", "content": "13"}],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, 1024)
    (tmp_path / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chat_equals_transformers(folder: Path, messages: list[dict[str, Any]], variables: dict[str, Any]) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **variables)
    expected_ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **variables)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.render_chat(messages, variables) == expected
    assert tokenizer.encode_chat(messages, variables) == expected_ids


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n    {{ m.content | tojson }}\n{% endfor %}{{ eos_token }}",
        "{%- for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{%- endfor %}",
        "  {% if true %}\n  x\n  {% endif %}\ny",
        "{% generation %}{{ messages[0].content }}{% endgeneration %} {{ dict(a=1)|tojson(indent=2) }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ tools is none }} {{ documents }} {{ strftime_now('%%') }} {{ bos_token is defined }}",
    ],
)
def test_environment_equals_transformers(folder: Path, source: str) -> None:
    (folder / "chat_template.jinja").write_text(source)
    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template([USER, USER], add_generation_prompt=True, tokenize=False)
    assert Tokenizer.from_folder(folder).render_chat([USER, USER]) == expected


@pytest.mark.parametrize("as_list", [False, True])
def test_template_of_the_config_file(folder: Path, as_list: bool) -> None:
    (folder / "chat_template.jinja").unlink()
    template: Any = "{{ messages[0].content }}"
    named = [{"name": "tool_use", "template": "wrong"}, {"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named if as_list else template}))
    assert Tokenizer.from_folder(folder).render_chat([USER]) == USER["content"]


def test_the_older_template_file_comes_before_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "wrong"}))
    assert Tokenizer.from_folder(folder).render_chat([USER]) == USER["content"]


def test_text_and_bytes(folder: Path, tokenizer: Tokenizer) -> None:
    text = "Grüße, 世界 <|im_end|> 🦊"
    token_ids = tokenizer.encode(text)
    reference = AutoTokenizer.from_pretrained(folder)
    assert token_ids == reference(text)["input_ids"]
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in token_ids).decode() == text
    assert tokenizer.decode(token_ids) == text.replace("<|im_end|>", "")
    assert tokenizer.token_bytes(1000) == b""  # a row of the embedding without an entry


def test_system_messages_become_one_at_the_start(tokenizer: Tokenizer) -> None:
    a, b, c = ({"role": role, "content": text} for role, text in (("system", "A"), ("developer", "B"), ("system", "C")))
    empty = {"role": "system", "content": ""}
    turns = [USER, {"role": "assistant", "content": "Yes."}, USER]
    merged = [{"role": "system", "content": "A\n\nB\n\nC"}, *turns]
    for messages in ([a, b, c, *turns], [a, turns[0], b, *turns[1:], c], [a, empty, *turns, b, c]):
        assert tokenizer.render_chat(messages) == tokenizer.render_chat(merged)


def test_endings(tokenizer: Tokenizer) -> None:
    messages = [USER, {"role": "assistant", "content": " Two is\n"}]
    whole = tokenizer.render_chat(messages, ending=Ending.NOTHING)
    assert tokenizer.render_chat(messages) == whole + "<|im_start|>assistant\n<think>\n"
    opened = tokenizer.render_chat(messages, ending=Ending.OPEN)
    assert opened.endswith("<|im_start|>assistant\nTwo is\n")  # what the model has said so far, not trimmed at its end
    assert whole.startswith(opened.rstrip())
    assert tokenizer.render_chat([USER], ending=Ending.OPEN).endswith(USER["content"])
    calling = [USER, {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}]
    with pytest.raises(ChatTemplateError, match="calls tools cannot be continued"):
        tokenizer.render_chat(calling, ending=Ending.OPEN)
    with pytest.raises(ChatTemplateError, match="does not show the text"):
        ChatTemplate("{{ messages[0].role }}", {}).render([USER], {}, ending=Ending.OPEN)


def test_parts_and_json_arguments(tokenizer: Tokenizer) -> None:
    call = {**TOOL_CALL, "function": {"name": "add", "arguments": json.dumps(ARGUMENTS)}}
    parts = [{"type": "text", "text": "What is 2 < 3 "}, {"type": "text", "text": '& "why"?'}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    plain: list[dict[str, Any]] = [USER, {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}]
    assert tokenizer.render_chat(messages) == tokenizer.render_chat(plain)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ([{"role": "system", "content": "A"}], "No user query found"),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "no function name"),
        ([{"role": "ghost", "content": "A"}, USER], "Unexpected message role"),
    ],
)
def test_refused_messages(tokenizer: Tokenizer, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ChatTemplateError, match=said):
        tokenizer.render_chat(messages)


@pytest.mark.parametrize("source", ["{{ messages[0].a.b }}", "{{ 1 + 'x' }}", "{{ 1 / 0 }}", "{{ missing() }}"])
def test_a_template_that_fails_is_a_chat_template_error(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="the chat template refuses"):
        ChatTemplate(source, {}).render([USER], {})


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render([USER], {})


def test_a_request_cannot_replace_what_the_template_is_given() -> None:
    with pytest.raises(ChatTemplateError, match="must not set 'messages'"):
        check_variables({"messages": []})


def test_no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match="no chat template"):
        Tokenizer.from_folder(folder).encode_chat([USER])


def test_bad_files_are_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja: the chat template has a syntax error in line 1"):
        Tokenizer.from_folder(folder)
    (folder / "chat_template.jinja").write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not valid UTF-8: .* byte 0xfc in position 2"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not readable as JSON"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=f"no tokenizer: {folder} has no file tokenizer.json"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("entry", [{"template": "x"}, {"name": "default"}, {"name": 1, "template": "x"}, "x"])
def test_named_templates_without_name_or_text(folder: Path, entry: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "x"}, entry]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template\[1\] has no name and template"):
        Tokenizer.from_folder(folder)


def test_vocabulary_larger_than_the_embedding(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    check_vocabulary(tokenizer, size)
    with pytest.raises(ValueError, match=f"tokenizer.json has {size} token ids.* config.json only {size - 1} rows"):
        check_vocabulary(tokenizer, size - 1)
