"""The model's shape, read from a checkpoint's ``config.json`` and checked once. No torch here.

Source: ``transformers.models.qwen3_5_moe.configuration_qwen3_5_moe``. Sizes are global for ever; what a tensor rank
holds of them is called ``local_…`` and lives in the layer.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINEAR, FULL = "linear_attention", "full_attention"
MODEL_TYPES = ("qwen3_5_moe", "qwen3_5_moe_text")
TORCH_DTYPES = ("bfloat16", "float32", "float16")


class ConfigError(ValueError):
    """A ``config.json`` that splitrank cannot serve; the message names the file, the key and the value."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a Qwen3.5-MoE text model. Names are those of ``config.json``; ``rotary_dim`` is in elements."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str

    @property
    def key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim


def read_config(path: Path) -> ModelConfig:
    """Reads a checkpoint folder's ``config.json``, or a bare config file (multimodal or text-only form)."""
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; a checkpoint folder holds a config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: not readable as JSON: {error}") from None
    try:
        return parse_config(raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse_config(raw: Any) -> ModelConfig:
    """Builds the checked config from the parsed JSON; raises ``ConfigError`` naming the key."""
    if not isinstance(raw, dict):
        raise ConfigError("not a JSON object")
    if raw.get("model_type") not in MODEL_TYPES:
        raise ConfigError(f"model_type is {raw.get('model_type')!r}; splitrank serves {' and '.join(MODEL_TYPES)}")
    text = raw.get("text_config", raw)
    if not isinstance(text, dict):
        raise ConfigError("text_config is not an object")
    _refuse_unsupported(raw, text)
    fields: dict[str, Any] = {
        **{name: _positive_int(text, name) for name in _INTEGERS},
        **_layer_types(text),
        **_rope(text),
        "rms_norm_eps": _number(text, "rms_norm_eps", 1e-6),
        "tie_word_embeddings": _boolean({**text, **raw}, "tie_word_embeddings"),
        "dtype": _dtype(raw, text),
    }
    config = ModelConfig(**fields)
    _check_relations(config)
    return config


# Sizes, and the value of one that config.json does not give: those of transformers' configuration class.
_INTEGERS = {
    "vocab_size": 248320,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "max_position_embeddings": 32768,
}


def _positive_int(text: dict[str, Any], name: str) -> int:
    value = text.get(name, _INTEGERS.get(name))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, not {value!r}")
    return value


def _number(text: dict[str, Any], name: str, default: float) -> float:
    value = text.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be a positive number, not {value!r}")
    return float(value)


def _boolean(holder: dict[str, Any], name: str) -> bool:
    value = holder.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")
    return value


def _refuse_unsupported(raw: dict[str, Any], text: dict[str, Any]) -> None:
    if raw.get("quantization_config") or text.get("quantization_config"):
        raise ConfigError("quantization_config is set; quantised checkpoints are not supported, use the bf16 one")
    for name, expected in (("hidden_act", "silu"), ("attention_bias", False), ("attn_output_gate", True)):
        if text.get(name, expected) != expected:
            raise ConfigError(f"{name} is {text[name]!r}; only {expected!r} is supported")


def _layer_types(text: dict[str, Any]) -> dict[str, Any]:
    num_layers = _positive_int(text, "num_hidden_layers")
    types = text.get("layer_types")
    if types is None:
        interval = text.get("full_attention_interval", 4)
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ConfigError(f"full_attention_interval must be a positive integer, not {interval!r}")
        types = [LINEAR if (i + 1) % interval else FULL for i in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise ConfigError(f"layer_types must list {num_layers} layers (num_hidden_layers), not {types!r}")
    for i, kind in enumerate(types):
        if kind not in (LINEAR, FULL):
            raise ConfigError(f"layer_types[{i}] is {kind!r}; known are {LINEAR} and {FULL}")
    return {"layer_types": tuple(types)}


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings of the current form (``rope_parameters``) and the older flat one (``rope_theta``, …)."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"rope_parameters must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ConfigError(f"rope_type is {kind!r}; only 'default' is supported")
    theta = _number({**text, **rope}, "rope_theta", 1e7)
    factor = _number({**text, **rope}, "partial_rotary_factor", 0.25)
    rotary_dim = int(_positive_int(text, "head_dim") * factor)
    if rotary_dim % 2 or not 0 < rotary_dim <= text["head_dim"]:
        raise ConfigError(
            f"partial_rotary_factor {factor:g} of head_dim {text['head_dim']} gives {rotary_dim} rotary dims"
        )
    section = rope.get("mrope_section", [11, 11, 10])
    if not isinstance(section, list) or len(section) != 3 or not all(isinstance(n, int) and n >= 0 for n in section):
        raise ConfigError(f"mrope_section must be three counts, not {section!r}")
    return {"rotary_dim": rotary_dim, "rope_theta": theta, "mrope_section": tuple(section)}


def _dtype(raw: dict[str, Any], text: dict[str, Any]) -> str:
    for holder in (text, raw):
        for key in ("dtype", "torch_dtype"):
            if holder.get(key) is not None:
                if holder[key] not in TORCH_DTYPES:
                    raise ConfigError(f"{key} is {holder[key]!r}; known are {', '.join(TORCH_DTYPES)}")
                return str(holder[key])
    return "bfloat16"


def _check_relations(config: ModelConfig) -> None:
    for heads, groups in (
        ("num_attention_heads", "num_key_value_heads"),
        ("linear_num_value_heads", "linear_num_key_heads"),
    ):
        if getattr(config, heads) % getattr(config, groups):
            raise ConfigError(
                f"{heads} {getattr(config, heads)} is not a multiple of {groups} {getattr(config, groups)}"
            )
    if config.num_experts_per_tok > config.num_experts:
        raise ConfigError(f"num_experts_per_tok {config.num_experts_per_tok} exceeds num_experts {config.num_experts}")
    if config.linear_conv_kernel_dim < 2:
        raise ConfigError("linear_conv_kernel_dim must be at least 2")
