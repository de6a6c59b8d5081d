"""Small random checkpoints in the layouts found on the hub, and the transformers model they came from.

``save_pretrained`` writes per-expert tensors even for a model loaded from fused ones, so the files are written here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

from splitrank.models.torch_dtype import torch_dtype
from tests.support.extra_tensors import mtp_tensors, vision_config, vision_tensors
from tests.support.tiny_tokenizer import write_tokenizer

__all__ = [
    "hub_config",
    "make_reference",
    "random_text_config",
    "round_to_bfloat16",
    "write_checkpoint",
    "write_tokenizer",
]

Naming = Literal["multimodal", "text"]
Experts = Literal["fused", "per_expert", "mixed"]
Tensors = dict[str, torch.Tensor]

TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "max_position_embeddings": 1024,
}


def random_text_config(**overrides: Any) -> Qwen3_5MoeTextConfig:
    """A tiny text config; any field may be overridden. Rope is the real one, with mrope sections that fit head_dim."""
    shape = {**TINY_SHAPE, **overrides}
    num_frequencies = shape["head_dim"] // 8  # a quarter of the head is rotated, in pairs
    shape.setdefault(
        "rope_parameters",
        {
            "rope_type": "default",
            "rope_theta": 10_000_000,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [(num_frequencies + 2) // 3, (num_frequencies + 1) // 3, num_frequencies // 3],
        },
    )
    return Qwen3_5MoeTextConfig(attn_implementation="eager", **shape)


# One layer of each kind, few heads and experts: the interpreter's time goes by programs.
TWO_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "num_experts": 4,
}


@torch.no_grad()
def make_reference(config: Qwen3_5MoeTextConfig, seed: int = 0) -> Qwen3_5MoeForCausalLM:
    """The transformers model in float32, with weights such that every term changes the logits.

    Its own initialisation leaves the norms at their neutral value and dt_bias at one: an error there would not show.
    """
    model = Qwen3_5MoeForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(_random_parameter(name, parameter, generator))
    return model


def _random_parameter(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(like.shape, generator=generator)
    if name.endswith("A_log"):
        return (torch.rand(like.shape, generator=generator) * 4 + 0.05).log()
    if name.endswith("linear_attn.norm.weight"):  # plain w; all other norms apply 1 + w
        return 1 + 0.2 * normal
    if "norm" in name:
        return 0.2 * normal
    if name.endswith(("dt_bias", "embed_tokens.weight")):
        return normal
    if name.endswith("conv1d.weight"):
        return 0.5 * normal
    fan_in = like.shape[-1]
    return normal * fan_in**-0.5


@torch.no_grad()
def round_to_bfloat16(model: Qwen3_5MoeForCausalLM) -> Qwen3_5MoeForCausalLM:
    """Make the float32 model hold exactly what ``write_checkpoint(..., dtype="bfloat16")`` stores. Returns it."""
    for name, parameter in model.named_parameters():
        if not _stays_float32(name):
            parameter.copy_(parameter.bfloat16())
    return model


def write_checkpoint(
    model: Qwen3_5MoeForCausalLM,
    folder: Path,
    *,
    naming: Naming = "multimodal",
    experts: Experts = "fused",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    f32_a_log: bool = True,
    with_mtp: bool = False,
    with_vision: bool = False,
    shards: int = 1,
    tied: bool | None = None,
) -> Path:
    """Write ``model`` as a hub-like folder: config.json and safetensors (with an index if ``shards`` > 1).

    ``experts="mixed"`` changes the form from tensor to tensor. ``f32_a_log`` keeps A_log and the gated norm in float32,
    as Qwen3.5 does and Qwen3.6 does not. ``tied`` overrides the config's tie_word_embeddings; the caller's model must
    agree with it. Returns ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tied = bool(model.config.tie_word_embeddings) if tied is None else tied
    tensors = dict(_hub_tensors(model.state_dict(), naming, experts))
    if tied:
        del tensors["lm_head.weight"]
    if with_mtp:
        tensors |= mtp_tensors(model.config)
    if with_vision:
        tensors |= vision_tensors(model.config.hidden_size)
    target = torch_dtype(dtype)
    for name, tensor in tensors.items():
        keep = f32_a_log and _stays_float32(name)
        tensors[name] = tensor.to(torch.float32 if keep else target).contiguous()
    _write_shards(tensors, folder, shards)
    (folder / "config.json").write_text(json.dumps(hub_config(model.config, naming, dtype, tied), indent=2))
    return folder


def _stays_float32(name: str) -> bool:
    return name.endswith(("linear_attn.A_log", "linear_attn.norm.weight"))


def _hub_tensors(state: Tensors, naming: Naming, experts: Experts) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        if naming == "multimodal" and name.startswith("model."):
            name = "model.language_model." + name.removeprefix("model.")
        if ".mlp.experts." in name and not _is_fused(name, experts):
            yield from _per_expert(name, tensor)
        else:
            yield name, tensor.clone()  # a tied head shares storage, which safetensors refuses


def _is_fused(name: str, experts: Experts) -> bool:
    """Mixed, by layer modulo 4: all fused; none; gate_up_proj only; down_proj only."""
    if experts != "mixed":
        return experts == "fused"
    layer = int(name.split(".layers.")[1].split(".")[0]) % 4
    return layer == 0 or (layer == 2 and "gate_up" in name) or (layer == 3 and "down" in name)


def _per_expert(name: str, fused: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    prefix, kind = name.rsplit(".", 1)
    for index, tensor in enumerate(fused):
        if kind == "down_proj":
            yield f"{prefix}.{index}.down_proj.weight", tensor.clone()
        else:
            gate, up = tensor.chunk(2, dim=0)
            yield f"{prefix}.{index}.gate_proj.weight", gate.clone()
            yield f"{prefix}.{index}.up_proj.weight", up.clone()


def _write_shards(tensors: Tensors, folder: Path, shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def hub_config(config: Qwen3_5MoeTextConfig, naming: Naming, dtype: str, tied: bool) -> dict[str, Any]:
    """config.json as the hub has it: multimodal with a nested text_config, or the text-only export."""
    text = {
        **{key: getattr(config, key) for key in TINY_SHAPE},
        "model_type": "qwen3_5_moe_text",
        "dtype": dtype,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "eos_token_id": config.eos_token_id,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": list(config.layer_types or ()),
        "linear_conv_kernel_dim": config.linear_conv_kernel_dim,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": config.rope_parameters,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": tied,
        "use_cache": True,
    }
    if naming == "text":
        return {"architectures": ["Qwen3_5MoeForCausalLM"], **text}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "tie_word_embeddings": tied,
        "vision_config": vision_config(config.hidden_size),
    }
