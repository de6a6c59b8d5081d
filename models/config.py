"""The model's shape, read from a checkpoint's ``config.json`` and checked once. No torch here.

Source: ``transformers.models.qwen3_5_moe.configuration_qwen3_5_moe``. Sizes are those of the whole model;
``layer_shapes.py`` has the part of a tensor rank.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrank.models.dtypes import DTYPES
from splitrank.models.errors import CheckpointError
from splitrank.models.json_file import read_json_object

LINEAR, FULL = "linear_attention", "full_attention"
MODEL_TYPES = ("qwen3_5_moe", "qwen3_5_moe_text")


class ConfigError(CheckpointError):
    """A ``config.json`` that splitrank cannot serve; the message names the file, the key and the value."""


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN's rotary frequencies for texts longer than those of the training (Peng et al., 2023).

    ``attention_factor`` scales cos and sin. A pair of dims that turns more than ``beta_fast`` times over the original
    length keeps its frequency. One that turns less than ``beta_slow`` times has its frequency divided by ``factor``.
    Those in between are interpolated; ``truncate`` rounds the two borders to whole dims.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


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
    yarn: Yarn | None
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
    def context_length(self) -> int:
        """Longest text in tokens: that of config.json, times YaRN's factor if config.json gives the original length."""
        if self.yarn is None or self.max_position_embeddings > self.yarn.original_max_position_embeddings:
            return self.max_position_embeddings
        return int(self.yarn.factor * self.yarn.original_max_position_embeddings)

    @property
    def key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim


def read_config(path: Path) -> ModelConfig:
    """Reads a checkpoint folder's ``config.json``, or a bare config file (multimodal or text-only form)."""
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ConfigError(f"{file}: no such file; a checkpoint folder holds a config.json")
    raw = read_json_object(file)
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


# Sizes, with the defaults of transformers' configuration class for those that config.json does not give.
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


def _number(text: dict[str, Any], name: str, default: float | None = None) -> float:
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
    """Rotary settings of the current form (``rope_parameters``) and of the older ones (``rope_scaling``, flat keys).

    ``mrope_section`` and ``mrope_interleaved`` are not read. They assign pairs of dims to three position axes (time,
    height, width). Text has the same position on all three axes, so plain rope is exact.
    """
    rope = _rope_parameters(text)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope", "yarn"):
        raise ConfigError(f"rope_type is {kind!r}; only 'default' and 'yarn' are supported")
    theta = _number({**text, **rope}, "rope_theta", 10_000.0)
    share = _number({**text, **rope}, "partial_rotary_factor", 0.25)
    head_dim = _positive_int(text, "head_dim")
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise ConfigError(f"partial_rotary_factor {share:g} of head_dim {head_dim} gives {rotary_dim} rotary dims")
    return {"rotary_dim": rotary_dim, "rope_theta": theta, "yarn": _yarn(text, rope) if kind == "yarn" else None}


def _rope_parameters(text: dict[str, Any]) -> dict[str, Any]:
    scaling, rope = text.get("rope_scaling") or {}, text.get("rope_parameters") or {}
    for name, settings in (("rope_scaling", scaling), ("rope_parameters", rope)):
        if not isinstance(settings, dict):
            raise ConfigError(f"{name} must be an object, not {settings!r}")
        if settings.keys() & {LINEAR, FULL}:
            raise ConfigError(f"{name} names layer types; one setting for all layers is supported")
    if scaling and rope and scaling != rope:
        # transformers would use rope_scaling alone, and a default rope_theta if only rope_parameters holds that.
        raise ConfigError(
            "rope_scaling and rope_parameters are both set and differ; put all settings in rope_parameters"
        )
    return scaling or rope


def _yarn(text: dict[str, Any], rope: dict[str, Any]) -> Yarn:
    positions, given = _positive_int(text, "max_position_embeddings"), {k: v for k, v in rope.items() if v is not None}
    holder = {"original_max_position_embeddings": positions, **given, **text}  # the order of transformers
    original = _positive_int(holder, "original_max_position_embeddings")
    is_ratio = "factor" in rope and "factor" not in given  # a factor of null means the ratio of the two lengths
    factor = positions / original if is_ratio else _number(given, "factor")
    if factor < 1:
        raise ConfigError(f"factor {factor:g} of rope_type 'yarn' must be at least 1")
    attention_factor = _mscale(factor, 1.0)
    if "mscale" in given and "mscale_all_dim" in given:
        attention_factor = _mscale(factor, _number(given, "mscale")) / _mscale(factor, _number(given, "mscale_all_dim"))
    return Yarn(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=_number(given, "attention_factor", attention_factor),
        beta_fast=_number(given, "beta_fast", 32.0),
        beta_slow=_number(given, "beta_slow", 1.0),
        truncate=_boolean({"truncate": True, **given}, "truncate"),
    )


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _dtype(raw: dict[str, Any], text: dict[str, Any]) -> str:
    for holder in (text, raw):
        for key in ("dtype", "torch_dtype"):
            if holder.get(key) is not None:
                if holder[key] not in DTYPES:
                    raise ConfigError(f"{key} is {holder[key]!r}; known are {', '.join(DTYPES)}")
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
