"""The demo model's shape: a Qwen3.5-MoE with everything in it, at most 32 MB as bf16."""

from typing import Any

from demo_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS

NUM_LAYERS = 8


def text_config() -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": special_id("<|endoftext|>"),
        "full_attention_interval": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "layer_types": ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(NUM_LAYERS)],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_value_head_dim": 64,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": max_positions(),
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 96,
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


def tiny_text_config() -> dict[str, Any]:
    """The same kinds of layers, for a test of the training program on a CPU."""
    small = {
        "hidden_size": 32,
        "head_dim": 16,
        "num_attention_heads": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_hidden_layers": 2,
        "full_attention_interval": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 16,
        "rope_parameters": {**text_config()["rope_parameters"], "mrope_section": [1, 1, 0]},
    }
    return {**text_config(), **small}


def max_positions() -> int:
    """As the demo's always was; trained on texts of up to 2,048 tokens."""
    return 8192


def special_id(text: str) -> int:
    return FIRST_SPECIAL_ID + list(SPECIAL_TOKENS).index(text)


def hub_config(text: dict[str, Any] | None = None) -> dict[str, Any]:
    """The multimodal form of the hub; the vision tower has no weights in a text-only checkpoint."""
    text = text or text_config()
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "model_type": "qwen3_5_moe", "num_heads": 2}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": special_id("<|image_pad|>"),
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": special_id("<|video_pad|>"),
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
        "vision_end_token_id": special_id("<|vision_end|>"),
        "vision_start_token_id": special_id("<|vision_start|>"),
    }


def generation_config() -> dict[str, Any]:
    """Sampling as Qwen has it; a sum is better asked at temperature 0."""
    return {
        "bos_token_id": special_id("<|endoftext|>"),
        "do_sample": True,
        "eos_token_id": [special_id("<|im_end|>"), special_id("<|endoftext|>")],
        "pad_token_id": special_id("<|endoftext|>"),
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }
