"""What each rank must hold, cut from the transformers model by hand: heads by ``chunk``, nothing of the weight plan."""

from collections.abc import Callable

import torch
from transformers import Qwen3_5MoeForCausalLM

from splitrank.models.sharding import StageSlice, TensorShard

Tensors = dict[str, torch.Tensor]
Take = Callable[..., torch.Tensor]


def expected_parameters(model: Qwen3_5MoeForCausalLM, stage: StageSlice, shard: TensorShard) -> Tensors:
    """Parameters of (stage, tensor rank) in the reference's dtype."""
    state, config = model.state_dict(), model.config
    expected: Tensors = {}
    for layer in stage.layers:
        prefix = f"layers.{layer}."
        own = {k.removeprefix("model." + prefix): v for k, v in state.items() if k.startswith("model." + prefix)}
        parts = {**_mixer(own, model, shard), **_moe(own, shard)}
        parts |= {name: own[name] for name in ("input_layernorm.weight", "post_attention_layernorm.weight")}
        expected |= {prefix + name: tensor for name, tensor in parts.items()}
    if stage.is_first:
        expected["embed_tokens.weight"] = _vocabulary(state["model.embed_tokens.weight"], shard)
    if stage.is_last:
        expected["norm.weight"] = state["model.norm.weight"]
        if not (config.tie_word_embeddings and stage.is_first):
            expected["lm_head.weight"] = _vocabulary(state["lm_head.weight"], shard)
    return expected


def _vocabulary(weight: torch.Tensor, shard: TensorShard) -> torch.Tensor:
    """The first ranks get one row more where the size does not divide."""
    return weight.tensor_split(shard.size)[shard.rank]


def _heads(weight: torch.Tensor, num_heads: int, shard: TensorShard) -> torch.Tensor:
    """Rows of this rank's heads; with fewer heads than ranks, the one head that its ranks share."""
    by_head = weight.unflatten(0, (num_heads, -1))
    copies = max(1, shard.size // num_heads)
    return by_head.repeat_interleave(copies, dim=0).chunk(shard.size)[shard.rank].flatten(0, 1)


def _columns(weight: torch.Tensor, shard: TensorShard) -> torch.Tensor:
    return weight.chunk(shard.size, dim=-1)[shard.rank]


def _mixer(own: Tensors, model: Qwen3_5MoeForCausalLM, shard: TensorShard) -> Tensors:
    config = model.config
    if "self_attn.q_proj.weight" in own:
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        rows = [_heads(own[f"self_attn.{name}_proj.weight"], count, shard) for name, count in heads.items()]
        return {
            "self_attn.qkv_proj.weight": torch.cat(rows),
            "self_attn.q_norm.weight": own["self_attn.q_norm.weight"],
            "self_attn.k_norm.weight": own["self_attn.k_norm.weight"],
            "self_attn.o_proj.weight": _columns(own["self_attn.o_proj.weight"], shard),
        }
    p, k_heads, v_heads = "linear_attn.", config.linear_num_key_heads, config.linear_num_value_heads
    key_dim = k_heads * config.linear_key_head_dim
    value_dim = v_heads * config.linear_value_head_dim

    def q_k_v(weight: torch.Tensor) -> list[torch.Tensor]:
        q, k, v = weight.split([key_dim, key_dim, value_dim])
        return [_heads(q, k_heads, shard), _heads(k, k_heads, shard), _heads(v, v_heads, shard)]

    by_v_head = [_heads(own[f"{p}in_proj_{name}.weight"], v_heads, shard) for name in ("z", "b", "a")]
    return {
        p + "in_proj.weight": torch.cat([*q_k_v(own[p + "in_proj_qkv.weight"]), *by_v_head]),
        p + "conv1d.weight": torch.cat(q_k_v(own[p + "conv1d.weight"].squeeze(1))),
        p + "A_log": _heads(own[p + "A_log"], v_heads, shard),
        p + "dt_bias": _heads(own[p + "dt_bias"], v_heads, shard),
        p + "norm.weight": own[p + "norm.weight"],
        p + "out_proj.weight": _columns(own[p + "out_proj.weight"], shard),
    }


def _moe(own: Tensors, shard: TensorShard) -> Tensors:
    def half(weight: torch.Tensor) -> torch.Tensor:
        return weight.chunk(shard.size)[shard.rank]

    def gate_up(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.cat((half(gate), half(up)))

    shared = (own[f"mlp.shared_expert.{name}_proj.weight"] for name in ("gate", "up"))
    expected = {
        "mlp.router.weight": torch.cat((own["mlp.gate.weight"], own["mlp.shared_expert_gate.weight"])),
        "mlp.shared_expert.gate_up_proj.weight": gate_up(*shared),
        "mlp.shared_expert.down_proj.weight": _columns(own["mlp.shared_expert.down_proj.weight"], shard),
    }
    expected["mlp.experts.gate_up_proj"] = torch.stack(
        [gate_up(*one.chunk(2)) for one in own["mlp.experts.gate_up_proj"]]
    )
    expected["mlp.experts.down_proj"] = _columns(own["mlp.experts.down_proj"], shard)
    return expected
