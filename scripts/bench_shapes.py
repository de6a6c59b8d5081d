"""Random checkpoints of the benchmark shapes, in the hub's layout, with the ``transformers`` model they came from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

SHAPES: dict[str, dict[str, Any]] = {
    "S": {  # 129 M parameters, 74 MB read per token in bf16
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256,
        "vocab_size": 8192,
        "max_position_embeddings": 4096,
    },
    "M": {  # 1.39 B parameters, 605 MB read per token in bf16
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 32768,
        "max_position_embeddings": 4096,
    },
    "V": {  # the real vocabulary: 127 M of 133 M parameters are embedding and head
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "vocab_size": 248_320,
        "max_position_embeddings": 4096,
    },
}


def text_config(shape: str, dtype: str) -> Any:
    """The config of a shape."""
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
    }
    return Qwen3_5MoeTextConfig(**SHAPES[shape], rope_parameters=rope, dtype=dtype)


def random_model(shape: str, dtype: torch.dtype) -> Any:
    """The reference model of a shape; the seed is fixed."""
    torch.manual_seed(0)
    model: Any = Qwen3_5MoeForCausalLM(text_config(shape, str(dtype).removeprefix("torch.")))
    return model.to(dtype).eval()


def write_text_checkpoint(model: Any, folder: Path) -> None:
    """Fused experts and text-only naming: the module's own names, which ``save_pretrained`` would split per expert."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
