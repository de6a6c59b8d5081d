"""The tensors of a Qwen3.5-MoE checkpoint: names, shapes, and the rules by which some are ignored. No torch here.

Two namings are on the hub: ``model.language_model.layers.0…`` (multimodal) and ``model.layers.0…`` (text only). The
canonical name is the name without that prefix.
"""

from collections.abc import Iterator

from splitrank.models.config import FULL, ModelConfig

Shape = tuple[int, ...]

EMBEDDING, FINAL_NORM, HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"
_PREFIXES = ("model.language_model.", "model.")
_IGNORED = {
    "mtp.": "multi-token prediction head, not used for serving",
    "model.mtp.": "multi-token prediction head, not used for serving",
    "model.visual.": "vision tower, splitrank serves text",
    "visual.": "vision tower, splitrank serves text",
}


def ignored_rule(name: str) -> str | None:
    """The rule by which a tensor is not loaded; None if it belongs to the text model."""
    if name.endswith((".rotary_emb.inv_freq", ".rotary_emb.original_inv_freq")):  # older versions stored the buffers
        return "rotary frequencies, computed from config.json"
    return next((reason for prefix, reason in _IGNORED.items() if name.startswith(prefix)), None)


def canonical_name(name: str) -> str:
    """``model.language_model.layers.3.x`` and ``model.layers.3.x`` -> ``layers.3.x``; others stay as they are."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name[len(prefix) :]


def expert_name(layer: int, expert: int, projection: str) -> str:
    """Canonical name of one expert's ``gate_proj``, ``up_proj`` or ``down_proj`` in a per-expert checkpoint."""
    return f"layers.{layer}.mlp.experts.{expert}.{projection}.weight"


def fused_expert_name(layer: int, projection: str) -> str:
    """Canonical name of the fused ``gate_up_proj`` [E, 2I, H] or ``down_proj`` [E, H, I]."""
    return f"layers.{layer}.mlp.experts.{projection}"


def per_expert_projections(projection: str) -> tuple[str, ...]:
    """The per-expert tensors that make up a fused one."""
    return ("gate_proj", "up_proj") if projection == "gate_up_proj" else ("down_proj",)


def dense_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Canonical names and shapes of all tensors of the text model, except the routed experts."""
    yield EMBEDDING, (config.vocab_size, config.hidden_size)
    yield FINAL_NORM, (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield HEAD, (config.vocab_size, config.hidden_size)
    for layer, kind in enumerate(config.layer_types):
        mixer = _attention_shapes(config) if kind == FULL else _linear_attention_shapes(config)
        for name, shape in {**mixer, **_mlp_shapes(config)}.items():
            yield f"layers.{layer}.{name}", shape


def expert_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the routed experts' tensors: fused with all experts, and of one expert."""
    inner, hidden, experts = config.moe_intermediate_size, config.hidden_size, config.num_experts
    return {
        "gate_up_proj": (experts, 2 * inner, hidden),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (experts, hidden, inner),
        "one down_proj": (hidden, inner),
    }


def _attention_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, dim = config.hidden_size, config.head_dim
    q_dim, kv_dim = config.num_attention_heads * dim, config.num_key_value_heads * dim
    return {
        "self_attn.q_proj.weight": (2 * q_dim, hidden),
        "self_attn.k_proj.weight": (kv_dim, hidden),
        "self_attn.v_proj.weight": (kv_dim, hidden),
        "self_attn.o_proj.weight": (hidden, q_dim),
        "self_attn.q_norm.weight": (dim,),
        "self_attn.k_norm.weight": (dim,),
    }


def _linear_attention_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    conv_dim = 2 * config.key_dim + config.value_dim
    return {
        "linear_attn.in_proj_qkv.weight": (conv_dim, hidden),
        "linear_attn.in_proj_z.weight": (config.value_dim, hidden),
        "linear_attn.in_proj_b.weight": (heads, hidden),
        "linear_attn.in_proj_a.weight": (heads, hidden),
        "linear_attn.conv1d.weight": (conv_dim, 1, config.linear_conv_kernel_dim),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (config.linear_value_head_dim,),
        "linear_attn.out_proj.weight": (hidden, config.value_dim),
    }


def _mlp_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, shared = config.hidden_size, config.shared_expert_intermediate_size
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate.weight": (config.num_experts, hidden),
        "mlp.shared_expert.gate_proj.weight": (shared, hidden),
        "mlp.shared_expert.up_proj.weight": (shared, hidden),
        "mlp.shared_expert.down_proj.weight": (hidden, shared),
        "mlp.shared_expert_gate.weight": (1, hidden),
    }
