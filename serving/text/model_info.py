"""What requests are checked against, and what the API says of the model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from splitrank import __version__
from splitrank.models.json_file import read_json_object
from splitrank.serving.launch.answer_settings import answer_settings
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.protocol.sampling_params import SamplingParams

DEFAULT_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class ModelInfo:
    """What a request is checked against, and what the API says of the model."""

    name: str
    max_model_len: int  # tokens, prompt + output
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    defaults: dict[str, float]  # of generation_config.json, by the names of SamplingParams
    fingerprint: str  # version, layout, and a hash of config.json, defaults and all settings that may change an answer
    max_open_requests: int  # choices that may run and wait at once


def model_info(spec: LaunchSpec, model: str, served_model_name: str = "") -> ModelInfo:
    """``model`` is the user's: a folder, a hub id, or empty. Raises ``ValueError`` for a bad generation_config.json."""
    defaults = read_defaults(Path(spec.model_dir))
    return ModelInfo(
        name=served_model_name or _default_name(model, spec.model_dir),
        max_model_len=spec.max_model_len,
        vocab_size=spec.vocab_size,
        eos_token_ids=spec.eos_token_ids,
        defaults=defaults,
        fingerprint=_fingerprint(spec, defaults),
        max_open_requests=spec.max_running_requests + spec.max_queued_requests,
    )


def read_defaults(model_dir: Path) -> dict[str, float]:
    """Sampling defaults of generation_config.json; ``do_sample: false`` means temperature 0.

    Raises ``ValueError`` that names the file for a value that a request could not have.
    """
    path = model_dir / "generation_config.json"
    config = read_json_object(path, optional=True)
    defaults: dict[str, Any] = {name: config[name] for name in DEFAULT_NAMES if config.get(name) is not None}
    if config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    try:
        params = SamplingParams(**defaults)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {name: getattr(params, name) for name in defaults}


def _default_name(model: str, model_dir: str) -> str:
    is_hub_id = bool(model) and not Path(model).exists()
    return model if is_hub_id else Path(model_dir).resolve().name


def _fingerprint(spec: LaunchSpec, defaults: dict[str, float]) -> str:
    config = Path(spec.model_dir) / "config.json"
    content = config.read_bytes() if config.is_file() else b""
    digest = hashlib.blake2b(
        content + msgspec.json.encode([answer_settings(spec), defaults]), digest_size=4
    ).hexdigest()
    return f"splitrank-{__version__}-tp{spec.tp_size}-pp{spec.pp_size}-{digest}"
