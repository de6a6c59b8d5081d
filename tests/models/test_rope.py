"""Rotary settings as transformers reads them: frequencies bit by bit, logits below and above the original length."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTextRotaryEmbedding

from splitrank.models.config import ConfigError, ModelConfig, parse_config
from splitrank.models.layers.rotary import RotaryEmbedding, inverse_frequencies
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.large_shapes import LARGE_SHAPES
from tests.support.stage_runner import StageRunner, random_tokens, relative_error, worst_row_error

# As the model card describes it for 1,010,000 tokens.
CARD = {
    "mrope_interleaved": True,
    "mrope_section": [11, 11, 10],
    "rope_type": "yarn",
    "rope_theta": 10_000_000,
    "partial_rotary_factor": 0.25,
    "factor": 4.0,
    "original_max_position_embeddings": 262_144,
}
SMALL = {**CARD, "rope_theta": 10_000, "mrope_section": [6, 5, 5], "partial_rotary_factor": 0.5}
SHORT = {**SMALL, "original_max_position_embeddings": 64}


def text_config(**changes: Any) -> dict[str, Any]:
    """The 35B model's text config with changes; a value of None takes the key away."""
    raw = {**LARGE_SHAPES["35B"], "model_type": "qwen3_5_moe_text", **changes}
    return deepcopy({name: value for name, value in raw.items() if value is not None})  # transformers changes them


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "no rope_theta": {"rope_parameters": {"rope_type": "default"}},
    "no rope settings": {"rope_parameters": None},
    "flat keys": {"rope_parameters": None, "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    "both levels": {"rope_parameters": {"rope_theta": 100.0}, "rope_theta": 7.0, "partial_rotary_factor": 0.5},
    "the card": {"rope_parameters": CARD},
    "the card, in the older key": {"rope_parameters": None, "rope_scaling": CARD},
    "the older form": {
        "rope_parameters": None,
        "rope_theta": 1e7,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262_144},
    },
    "factor 2": {"rope_parameters": {**CARD, "factor": 2.0}},
    "factor 1": {"rope_parameters": {**CARD, "factor": 1}},
    "longer positions": {"rope_parameters": CARD, "max_position_embeddings": 1_010_000},
    "no original length": {"rope_parameters": {k: v for k, v in CARD.items() if not k.startswith("orig")}},
    "an original length beside": {"rope_parameters": CARD, "original_max_position_embeddings": 4096},
    "factor by lengths": {"rope_parameters": {**CARD, "factor": None}, "max_position_embeddings": 524_288},
    "attention factor": {"rope_parameters": {**CARD, "attention_factor": 1.5}},
    "mscale": {"rope_parameters": {**CARD, "mscale": 1.0, "mscale_all_dim": 0.7}},
    "mscale alone": {"rope_parameters": {**CARD, "mscale": 2.0}},
    "betas": {"rope_parameters": {**CARD, "beta_fast": 16, "beta_slow": 2.5}},
    "nulls": {"rope_parameters": {**CARD, "beta_fast": None, "beta_slow": None, "attention_factor": None}},
    "not truncated": {"rope_parameters": {**CARD, "truncate": False}},
    "equal borders": {"rope_parameters": {**CARD, "beta_fast": 3.0, "beta_slow": 3.0, "truncate": False}},
    "a short length": {"rope_parameters": SHORT},
    "small theta": {"rope_parameters": {**CARD, "rope_theta": 100.0}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_frequencies_and_scale_are_those_of_transformers(case: str) -> None:
    raw = text_config(**CASES[case])
    theirs = Qwen3_5MoeTextRotaryEmbedding(Qwen3_5MoeTextConfig(**{k: v for k, v in raw.items() if k != "model_type"}))
    config = parse_config(raw)
    assert torch.equal(inverse_frequencies(config.rotary_dim, config.rope_theta, config.yarn), theirs.inv_freq)
    assert (1.0 if config.yarn is None else config.yarn.attention_factor) == theirs.attention_scaling
    positions = torch.tensor([0, 1, 1000, 262_143, 262_144, 1_009_999, 1_048_575])
    cos, sin = RotaryEmbedding(config.rotary_dim, config.rope_theta, config.yarn, torch.device("cpu"))(
        positions, torch.float32
    )
    expected = theirs(torch.empty(0), positions[None])
    assert all(torch.equal(found[:, 0], want[0]) for found, want in zip((cos, sin), expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 262_144),
        ({"rope_parameters": CARD}, 1_048_576),
        ({"rope_parameters": {**CARD, "factor": 2.0}}, 524_288),
        ({"rope_parameters": CARD, "max_position_embeddings": 1_010_000}, 1_010_000),
        ({"rope_parameters": {**CARD, "factor": None}, "max_position_embeddings": 524_288}, 524_288),
        ({"rope_parameters": {k: v for k, v in CARD.items() if not k.startswith("orig")}}, 1_048_576),
    ],
)
def test_the_context_that_follows(changes: dict[str, Any], length: int) -> None:
    assert parse_config(text_config(**changes)).context_length == length


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        name: (
            {"rope_parameters": {"rope_type": name, "factor": 2.0}},
            f"rope_type is '{name}'; only 'default' and 'yarn'",
        )
        for name in ("linear", "dynamic", "longrope", "llama3", "proportional")
    },
    "older key": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_type is 'linear'",
    ),
    "no factor": ({"rope_parameters": {"rope_type": "yarn"}}, "factor must be a positive number, not None"),
    "factor below 1": (
        {"rope_parameters": {**CARD, "factor": 0.5}},
        r"factor 0\.5 of rope_type 'yarn' must be at least 1",
    ),
    "factor as text": ({"rope_parameters": {**CARD, "factor": "4"}}, "factor must be a positive number, not '4'"),
    "original length": (
        {"rope_parameters": {**CARD, "original_max_position_embeddings": 2.5}},
        "original_max_position_embeddings must be a positive integer, not 2.5",
    ),
    "beta": ({"rope_parameters": {**CARD, "beta_fast": -1}}, "beta_fast must be a positive number"),
    "truncate": ({"rope_parameters": {**CARD, "truncate": "no"}}, "truncate must be true or false"),
    "by layer type": ({"rope_parameters": {"full_attention": CARD}}, "rope_parameters names layer types"),
    "two that differ": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "rope_scaling and rope_parameters are both set and differ",
    ),
    "not an object": ({"rope_parameters": None, "rope_scaling": "yarn"}, "rope_scaling must be an object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_with_the_reason(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        parse_config(text_config(**changes))


SHAPES: dict[str, dict[str, Any]] = {
    "original length 64, factor 4": SHORT,
    "not truncated, attention factor": {**SHORT, "truncate": False, "attention_factor": 0.7},
    "original length 256, factor 2": {**SMALL, "original_max_position_embeddings": 256, "factor": 2.0},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SHAPES)
def test_logits_below_and_above_the_original_length(tmp_path: Path, case: str) -> None:
    """In float32, at the bounds of the other parity tests; and with plain rope they would be others."""
    rope = SHAPES[case]
    shape = {"head_dim": 64, "max_position_embeddings": rope["original_max_position_embeddings"]}
    reference = make_reference(random_text_config(**shape, rope_parameters=deepcopy(rope)), seed=5)
    write_checkpoint(reference, tmp_path / "model", dtype="float32")
    runner = StageRunner(tmp_path / "model", tmp_path)
    config: ModelConfig = runner.worker.config
    assert config.context_length == int(rope["original_max_position_embeddings"] * rope["factor"])
    tokens = random_tokens(config.context_length, 384, seed=1)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0]
    sequence = runner.start(len(tokens))
    found = torch.cat([runner.prefill(sequence, tokens[:-2]), runner.decode(sequence, tokens[-2:])])
    assert relative_error(found, expected) <= 5e-5
    assert worst_row_error(found, expected) <= 5e-5
    runner.worker.model.rotary = RotaryEmbedding(config.rotary_dim, config.rope_theta, None, torch.device("cpu"))
    runner.end(sequence)
    plain = runner.prefill(runner.start(len(tokens)), tokens)
    assert relative_error(plain, expected) > 1e-3
