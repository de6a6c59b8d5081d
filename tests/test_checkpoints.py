"""The helper's files are what transformers loads: otherwise every parity test would compare with something else."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3_5MoeForConditionalGeneration

from tests.support.checkpoints import (
    make_reference,
    random_text_config,
    round_to_bfloat16,
    write_checkpoint,
    write_tokenizer,
)


@pytest.mark.parametrize("naming", ["multimodal", "text"])
@pytest.mark.parametrize("experts", ["fused", "per_expert", "mixed"])
def test_transformers_reads_back_the_same_model(tmp_path: Path, naming, experts) -> None:
    reference = round_to_bfloat16(make_reference(random_text_config(), seed=3))
    vision = naming == "multimodal"
    write_checkpoint(reference, tmp_path, naming=naming, experts=experts, with_mtp=True, with_vision=vision, shards=3)
    loader = Qwen3_5MoeForConditionalGeneration if vision else AutoModelForCausalLM
    loaded, report = loader.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    token_ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(token_ids).logits, reference(token_ids).logits)


def test_any_text_survives_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(write_checkpoint(make_reference(random_text_config()), tmp_path), vocab_size=384)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Hällo, wörld 12345 \n\t 你好 <think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == 384
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="260"):
        write_tokenizer(tmp_path, vocab_size=260)
