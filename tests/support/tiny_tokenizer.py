"""A byte-level tokenizer for test checkpoints, with the special tokens and chat markers of Qwen."""

import json
from itertools import product
from pathlib import Path
from string import ascii_lowercase

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT_TEMPLATE = """\
{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


def write_tokenizer(folder: Path, vocab_size: int) -> Path:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json (two eos ids).

    The 256 bytes, pairs of lower-case letters, and last the special tokens: any text encodes, any id decodes.
    From 261 entries; above 937 the rest of the vocabulary has no text, like the padding of the real one.
    """
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"a byte-level vocabulary needs {256 + len(SPECIAL_TOKENS)} entries, not {vocab_size}")
    merges = list(product(ascii_lowercase, repeat=2))[: vocab_size - 256 - len(SPECIAL_TOKENS)]
    entries = sorted(ByteLevel.alphabet()) + [left + right for left, right in merges]
    tokenizer = Tokenizer(BPE(vocab={text: index for index, text in enumerate(entries)}, merges=merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS[:3]))
    tokenizer.add_tokens(list(SPECIAL_TOKENS[3:]))  # shown in the output, as in Qwen's
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    eos = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}, indent=2))
    return folder
