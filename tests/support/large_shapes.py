"""config.json of the real models, as far as this engine reads it."""

from typing import Any

COMMON: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text",
    "dtype": "bfloat16",
    "vocab_size": 248_320,
    "head_dim": 256,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262_144,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
    },
}


def _text(hidden: int, layers: int, heads: int, v_heads: int, experts: int, top_k: int, inner: int) -> dict[str, Any]:
    return {
        **COMMON,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "linear_num_value_heads": v_heads,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
    }


LARGE_SHAPES: dict[str, dict[str, Any]] = {
    "35B": _text(2048, 40, 16, 32, 256, 8, 512),
    "122B": _text(3072, 48, 32, 64, 256, 8, 1024),
    "397B": _text(4096, 60, 32, 64, 512, 10, 1024),
}
