"""What transformers loads without missing a tensor loads here: nothing that is never read can refuse a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5MoeForConditionalGeneration, Qwen3_5MoeTextConfig

from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import _INTEGERS, ModelConfig, parse_config, read_config
from splitrank.models.errors import CheckpointError
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.raw_safetensors import add_tensor

INDEX = "model.safetensors.index.json"
TEXT = "model.language_model."


@pytest.fixture(scope="module")
def reference() -> Any:
    return make_reference(random_text_config(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]))


@pytest.fixture
def folder(reference: Any, tmp_path: Path) -> Path:
    return write_checkpoint(reference, tmp_path, dtype="float32", shards=2, with_mtp=True, with_vision=True)


def shard(number: int) -> str:
    return f"model-{number:05}-of-00002.safetensors"


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    raw = json.loads((folder / INDEX).read_text())
    change(raw["weight_map"])
    (folder / INDEX).write_text(json.dumps(raw))


def only_in_the_index(tensor: str) -> Callable[[Path], None]:
    return lambda folder: change_index(folder, lambda weight_map: weight_map.update({tensor: shard(2)}))


def only_in_a_shard(tensor: str) -> Callable[[Path], None]:
    return lambda folder: add_tensor(folder / shard(2), tensor, "F32", [4, 4], 64)


def in_both(tensor: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        only_in_a_shard(tensor)(folder)
        only_in_the_index(tensor)(folder)

    return change


def without(*keys: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        for key in keys:
            del raw["text_config"][key]
        (folder / "config.json").write_text(json.dumps(raw))

    return change


VARIANTS: dict[str, Callable[[Path], None]] = {
    "an MTP tensor only in the index": only_in_the_index("mtp.layers.1.norm.weight"),
    "an MTP tensor only in a shard": only_in_a_shard("mtp.layers.1.norm.weight"),
    "an MTP tensor in another shard than the index says": only_in_the_index("mtp.fc.weight"),
    "rotary frequencies": in_both(TEXT + "rotary_emb.inv_freq"),
    "rotary frequencies only in a shard": only_in_a_shard(TEXT + "rotary_emb.inv_freq"),
    "rotary frequencies of a layer": in_both(TEXT + "layers.1.self_attn.rotary_emb.inv_freq"),
    "original rotary frequencies": in_both(TEXT + "rotary_emb.original_inv_freq"),
    "rotary frequencies of the vision tower": in_both("model.visual.rotary_pos_emb.inv_freq"),
    "no kernel width in the config": without("linear_conv_kernel_dim"),
    "no epsilon and no activation in the config": without("rms_norm_eps", "hidden_act"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_loads_as_in_transformers(folder: Path, variant: str) -> None:
    config = read_config(folder)
    plain = open_checkpoint(folder, config)
    VARIANTS[variant](folder)
    options = {"dtype": torch.float32, "output_loading_info": True}
    _, report = Qwen3_5MoeForConditionalGeneration.from_pretrained(folder, **options)
    assert not report["missing_keys"]
    assert read_config(folder) == config
    assert open_checkpoint(folder, config).tensors.keys() == plain.tensors.keys()


@pytest.mark.parametrize("change", [only_in_the_index, only_in_a_shard])
@pytest.mark.parametrize("tensor", ["rotary_emb.weight", "layers.1.mtp.norm.weight"])
def test_tensors_that_could_be_read_still_refuse(folder: Path, change: Any, tensor: str) -> None:
    change(TEXT + tensor)(folder)
    with pytest.raises(CheckpointError, match=f"{shard(2)}: tensor '{TEXT}{tensor}' is in"):
        open_checkpoint(folder, read_config(folder))


def test_stored_frequencies_are_listed_as_ignored(reference: Any, tmp_path: Path) -> None:
    write_checkpoint(reference, tmp_path)
    file, name = tmp_path / "model.safetensors", TEXT + "rotary_emb.inv_freq"
    save_file({**load_file(file), name: torch.ones(4)}, file, metadata={"format": "pt"})
    ignored = open_checkpoint(tmp_path, read_config(tmp_path)).ignored
    assert ignored == {name: "rotary frequencies, computed from config.json"}


def test_sizes_that_the_config_does_not_give_are_those_of_transformers() -> None:
    default = Qwen3_5MoeTextConfig()
    assert {name: getattr(default, name) for name in _INTEGERS} == _INTEGERS
    assert {field.name for field in fields(ModelConfig) if field.type == "int" or field.type is int} == {
        *_INTEGERS,
        "rotary_dim",
    }
    config = parse_config({"model_type": "qwen3_5_moe_text"})
    assert config.rms_norm_eps == default.rms_norm_eps
    assert list(config.layer_types) == default.layer_types
    assert config.rope_theta == default.rope_parameters["rope_theta"]
    assert config.rotary_dim == default.rope_parameters["partial_rotary_factor"] * default.head_dim
    assert config.tie_word_embeddings == default.tie_word_embeddings
