"""The shipped demo checkpoint is what transformers takes for a Qwen3.5-MoE, down to tokenizer and chat template."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GenerationConfig, Qwen3_5MoeForCausalLM

from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path

SIZE_LIMIT_BYTES = 32_000_000  # it lives in git


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_checkpoint_path())


def render(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_it_is_small_enough_for_git() -> None:
    """The checkpoint; the questions beside it are not part of it."""
    files = [file for file in demo_checkpoint_path().iterdir() if file.suffix in (".safetensors", ".json", ".jinja")]
    assert sum(file.stat().st_size for file in files) < SIZE_LIMIT_BYTES


def test_transformers_loads_every_tensor_of_the_text_model() -> None:
    model, report = Qwen3_5MoeForCausalLM.from_pretrained(
        demo_checkpoint_path(), dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    assert logits.shape == (1, 16, 4096)
    assert 0.1 < logits.std() < 10


def test_ids_agree_between_the_files(tokenizer) -> None:
    folder = demo_checkpoint_path()
    config = json.loads((folder / "config.json").read_text())
    assert len(tokenizer) <= config["text_config"]["vocab_size"]
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == config["image_token_id"]
    eos = GenerationConfig.from_pretrained(folder).eos_token_id
    assert tokenizer.convert_ids_to_tokens(eos) == ["<|im_end|>", "<|endoftext|>"]


def test_the_tokenizer_file_alone_gives_the_same_ids(tokenizer) -> None:
    plain = Tokenizer.from_file(str(demo_checkpoint_path() / "tokenizer.json"))
    text = "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72 <think>\n\n</think> Ünïcode 你好 🙂<|im_end|>\n"
    ids = plain.encode(text).ids
    assert ids == tokenizer.encode(text)
    assert plain.decode(ids, skip_special_tokens=False) == text
    assert plain.decode(ids, skip_special_tokens=True) == text.replace("<|im_end|>", "")


def test_digits_stand_alone(tokenizer) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer.encode("1234")] == ["1", "2", "3", "4"]


def test_thinking_is_on_unless_turned_off(tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert render(tokenizer, messages) == head
    assert render(tokenizer, messages, add_generation_prompt=True) == head + "<|im_start|>assistant\n<think>\n"
    off = render(tokenizer, messages, add_generation_prompt=True, enable_thinking=False)
    assert off == head + "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_earlier_thoughts_are_dropped(tokenizer) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nfirst"},
        {"role": "user", "content": "two"},
    ]
    expected = (
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nfirst<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n"
    )
    assert render(tokenizer, messages) == expected


def test_tool_calls_and_their_results(tokenizer) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "note": "x"}}}
    messages = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": "", "reasoning_content": "add", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    text = render(tokenizer, messages, tools=tools)
    assert '<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools>' in text
    assert (
        "<think>\nadd\n</think>\n\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        "<parameter=note>\nx\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
    ) in text
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "system", "content": "x"}], "no user message"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "must come first"),
        ([{"role": "developer", "content": "x"}, {"role": "user", "content": "x"}], "unknown role developer"),
        ([{"role": "user", "content": [{"type": "image"}]}], "reads text only"),
    ],
)
def test_the_template_refuses_what_the_real_one_refuses(tokenizer, messages, reason: str) -> None:
    with pytest.raises(Exception, match=reason):
        render(tokenizer, messages)
