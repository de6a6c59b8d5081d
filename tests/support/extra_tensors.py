"""Tensors that real checkpoints hold and this engine ignores: the MTP layer and the vision tower, in tiny."""

from typing import Any

import torch
from transformers import Qwen3_5MoeTextConfig

Tensors = dict[str, torch.Tensor]


def _random(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def mtp_tensors(config: Qwen3_5MoeTextConfig) -> Tensors:
    """One multi-token-prediction layer with full attention and, as in Qwen3.5, experts one by one."""
    hidden, inner, head_dim = config.hidden_size, config.moe_intermediate_size, config.head_dim
    query, key_value = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer = "mtp.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "mtp.fc.weight": (hidden, 2 * hidden),
        "mtp.norm.weight": (hidden,),
        "mtp.pre_fc_norm_embedding.weight": (hidden,),
        "mtp.pre_fc_norm_hidden.weight": (hidden,),
        layer + "input_layernorm.weight": (hidden,),
        layer + "post_attention_layernorm.weight": (hidden,),
        layer + "self_attn.q_proj.weight": (2 * query, hidden),
        layer + "self_attn.k_proj.weight": (key_value, hidden),
        layer + "self_attn.v_proj.weight": (key_value, hidden),
        layer + "self_attn.o_proj.weight": (hidden, query),
        layer + "self_attn.q_norm.weight": (head_dim,),
        layer + "self_attn.k_norm.weight": (head_dim,),
        layer + "mlp.gate.weight": (config.num_experts, hidden),
        layer + "mlp.shared_expert_gate.weight": (1, hidden),
    }
    experts = {f"experts.{index}": inner for index in range(config.num_experts)}
    for name, size in {**experts, "shared_expert": config.shared_expert_intermediate_size}.items():
        shapes[f"{layer}mlp.{name}.gate_proj.weight"] = (size, hidden)
        shapes[f"{layer}mlp.{name}.up_proj.weight"] = (size, hidden)
        shapes[f"{layer}mlp.{name}.down_proj.weight"] = (hidden, size)
    return _random(shapes)


def vision_config(out_hidden: int) -> dict[str, Any]:
    """The vision_config that fits ``vision_tensors``."""
    shape = {"depth": 1, "hidden_size": 32, "intermediate_size": 128, "num_heads": 2, "num_position_embeddings": 16}
    return {"model_type": "qwen3_5_moe", **shape, "out_hidden_size": out_hidden}


def vision_tensors(out_hidden: int, hidden: int = 32) -> Tensors:
    """One block, patch and position embedding, and the merger, with biases."""
    block = "model.visual.blocks.0."
    merged = 4 * hidden  # 2 x 2 patches become one token
    linears = {
        block + "attn.qkv": (3 * hidden, hidden),
        block + "attn.proj": (hidden, hidden),
        block + "mlp.linear_fc1": (4 * hidden, hidden),
        block + "mlp.linear_fc2": (hidden, 4 * hidden),
        "model.visual.merger.linear_fc1": (merged, merged),
        "model.visual.merger.linear_fc2": (out_hidden, merged),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.visual.pos_embed.weight": (16, hidden),
        "model.visual.patch_embed.proj.weight": (hidden, 3, 2, 16, 16),
        "model.visual.patch_embed.proj.bias": (hidden,),
    }
    for name, (rows, columns) in linears.items():
        shapes |= {name + ".weight": (rows, columns), name + ".bias": (rows,)}
    for norm in (block + "norm1", block + "norm2", "model.visual.merger.norm"):
        shapes |= {norm + ".weight": (hidden,), norm + ".bias": (hidden,)}
    return _random(shapes)
