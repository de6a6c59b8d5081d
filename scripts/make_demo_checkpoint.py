"""Writes the demo checkpoint: the hub's layout, real tokenizer files, random weights. Deterministic.

    python scripts/make_demo_checkpoint.py --train train.jsonl [--out configs/demo]

The tokenizer is trained on the questions and answers of a GSM8K file (jsonl with "question" and "answer"). The model
card, the licence and chat_template.jinja in the folder are written by hand and left alone.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from demo_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS, train_tokenizer, write_tokenizer_files
from safetensors.torch import save_file

NUM_LAYERS = 8
LAYER_TYPES = ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(NUM_LAYERS)]
TEXT_CONFIG: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": FIRST_SPECIAL_ID,
    "full_attention_interval": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "layer_types": LAYER_TYPES,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_value_head_dim": 32,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 8192,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": 64,
    "mtp_num_hidden_layers": 0,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": NUM_LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 64,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 4096,
}
VISION_CONFIG = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "model_type": "qwen3_5_moe", "num_heads": 2}


def special_id(text: str) -> int:
    return FIRST_SPECIAL_ID + list(SPECIAL_TOKENS).index(text)


def hub_config() -> dict[str, Any]:
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": special_id("<|image_pad|>"),
        "model_type": "qwen3_5_moe",
        "text_config": TEXT_CONFIG,
        "tie_word_embeddings": False,
        "video_token_id": special_id("<|video_pad|>"),
        "vision_config": {**VISION_CONFIG, "out_hidden_size": TEXT_CONFIG["hidden_size"]},
        "vision_end_token_id": special_id("<|vision_end|>"),
        "vision_start_token_id": special_id("<|vision_start|>"),
    }


def generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": special_id("<|endoftext|>"),
        "do_sample": True,
        "eos_token_id": [special_id("<|im_end|>"), special_id("<|endoftext|>")],
        "pad_token_id": special_id("<|endoftext|>"),
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the text model under its hub name."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "lm_head.weight", (vocab, hidden)
    yield "model.language_model.embed_tokens.weight", (vocab, hidden)
    yield "model.language_model.norm.weight", (hidden,)
    for index, kind in enumerate(config["layer_types"]):
        prefix = f"model.language_model.layers.{index}."
        mixer = full_attention_shapes(config) if kind == "full_attention" else linear_attention_shapes(config)
        norms = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        for name, shape in {**norms, **mixer, **moe_shapes(config)}.items():
            yield prefix + name, shape


def full_attention_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    query, key_value = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    return {
        "self_attn.q_proj.weight": (2 * query, hidden),  # per head: query rows, then output gate rows
        "self_attn.k_proj.weight": (key_value, hidden),
        "self_attn.v_proj.weight": (key_value, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "self_attn.q_norm.weight": (head_dim,),
        "self_attn.k_norm.weight": (head_dim,),
    }


def linear_attention_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, num_heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = num_heads * config["linear_value_head_dim"]
    return {
        "linear_attn.in_proj_qkv.weight": (2 * keys + values, hidden),
        "linear_attn.in_proj_z.weight": (values, hidden),
        "linear_attn.in_proj_a.weight": (num_heads, hidden),
        "linear_attn.in_proj_b.weight": (num_heads, hidden),
        "linear_attn.conv1d.weight": (2 * keys + values, 1, config["linear_conv_kernel_dim"]),
        "linear_attn.A_log": (num_heads,),
        "linear_attn.dt_bias": (num_heads,),
        "linear_attn.norm.weight": (config["linear_value_head_dim"],),
        "linear_attn.out_proj.weight": (hidden, values),
    }


def moe_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, experts, inner = config["hidden_size"], config["num_experts"], config["moe_intermediate_size"]
    shared = config["shared_expert_intermediate_size"]
    return {
        "mlp.gate.weight": (experts, hidden),
        "mlp.experts.gate_up_proj": (experts, 2 * inner, hidden),
        "mlp.experts.down_proj": (experts, hidden, inner),
        "mlp.shared_expert.gate_proj.weight": (shared, hidden),
        "mlp.shared_expert.up_proj.weight": (shared, hidden),
        "mlp.shared_expert.down_proj.weight": (hidden, shared),
        "mlp.shared_expert_gate.weight": (1, hidden),
    }


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Weights of a scale that keeps activations near one; A_log and the gated norm in float32, as in Qwen3.5."""
    normal = torch.randn(shape, generator=generator)
    if name.endswith("A_log"):
        return (torch.rand(shape, generator=generator) * 4 + 0.05).log()
    if name.endswith("linear_attn.norm.weight"):
        return 1 + 0.1 * normal
    if "norm" in name:
        return (0.1 * normal).bfloat16()  # applied as 1 + w
    if name.endswith(("dt_bias", "embed_tokens.weight")):
        return normal.bfloat16()
    return normal.mul(shape[-1] ** -0.5).bfloat16()  # fan-in


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="jsonl with question and answer, for the tokenizer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "configs" / "demo")
    parser.add_argument("--seed", type=int, default=20261121)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_tokenizer_files(train_tokenizer(arguments.train), arguments.out, TEXT_CONFIG["max_position_embeddings"])
    write_json(arguments.out / "config.json", hub_config())
    write_json(arguments.out / "generation_config.json", generation_config())
    generator = torch.Generator().manual_seed(arguments.seed)
    tensors = {name: random_tensor(name, shape, generator) for name, shape in tensor_shapes(TEXT_CONFIG)}
    save_file(tensors, arguments.out / "model.safetensors", metadata={"format": "pt"})
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    print(f"{arguments.out}: {num_parameters / 1e6:.1f} M parameters, random, seed {arguments.seed}")


if __name__ == "__main__":
    main()
