"""Tied or not: every mix of flags and stored tensors as transformers has it, in each layout the same."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3_5MoeForConditionalGeneration

from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import ModelConfig, read_config
from splitrank.models.errors import CheckpointError
from splitrank.models.loader import load_weights
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.tied_head import settle_head
from splitrank.models.weight_plan import audit_plan, audit_union
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.raw_safetensors import bytes_read_by

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
FLAGS = (None, False, True)  # None: not in the file
Ends = tuple[torch.Tensor, torch.Tensor]  # embedding, head


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both tensors stored, different; a vision tower, so that transformers' multimodal class loads it."""
    shape = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    reference = make_reference(random_text_config(**shape), seed=3)
    return write_checkpoint(reference, tmp_path_factory.mktemp("whole"), dtype="float32", with_vision=True)


def variant(whole: Path, folder: Path, outer: bool | None, inner: bool | None, stored: str) -> Path:
    """A copy with these flags in config.json and its text_config."""
    tensors = load_file(whole / "model.safetensors")
    if stored == "equal":
        tensors[HEAD] = tensors[EMBEDDING].clone()
    elif stored in ("no head", "no embedding"):
        del tensors[HEAD if stored == "no head" else EMBEDDING]
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((whole / "config.json").read_text())
    for holder, flag in ((raw, outer), (raw["text_config"], inner)):
        holder.pop("tie_word_embeddings")
        if flag is not None:
            holder["tie_word_embeddings"] = flag
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def theirs(folder: Path, model_class: Any) -> Ends | None:
    """What transformers computes with; None if it made up a tensor that it missed."""
    options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, report = model_class.from_pretrained(folder, **options)
    if report["missing_keys"]:
        return None
    return model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data


def ours(folder: Path, partition: tuple[int, ...] = (2,), tp: int = 1) -> Ends | None:
    """From all ranks together; None if the checkpoint is refused for want of one of the two."""
    try:
        config, checkpoint = settle_head(folder, read_config(folder))
    except CheckpointError as error:
        if "is missing" not in str(error):
            raise
        return None
    plans = plan_all_ranks(config, tp, partition, "float32", checkpoint)
    audit_union(plans, checkpoint)
    rows: dict[str, list[torch.Tensor]] = {"embed_tokens": [], "lm_head": []}
    for plan in plans:
        audit_plan(plan)
        stage = Stage(config, plan.stage, partition, plan.shard, torch.float32, CpuOperations())
        load_weights(stage, plan, checkpoint)
        for name, parts in rows.items():
            if hasattr(stage, name):
                parts.append(getattr(stage, name).weight.data)
    return torch.cat(rows["embed_tokens"]), torch.cat(rows["lm_head"])


def same(one: Ends, other: Ends) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("stored", ["no head", "no embedding", "equal", "different"])
@pytest.mark.parametrize(("outer", "inner"), list(product(FLAGS, FLAGS)))
def test_every_mix_is_what_transformers_makes_of_it(
    whole: Path, tmp_path: Path, outer: bool | None, inner: bool | None, stored: str
) -> None:
    """Its multimodal class obeys the outer flag, the text class the inner one. We obey the outer one if it is there."""
    folder = variant(whole, tmp_path / "variant", outer, inner, stored)
    multimodal, text = theirs(folder, Qwen3_5MoeForConditionalGeneration), theirs(folder, AutoModelForCausalLM)
    expected = text if outer is None else multimodal
    found = ours(folder)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert same(found, expected)
    # Where both tensors are stored, the flags do not matter.
    if stored in ("equal", "different"):
        assert multimodal is not None
        assert text is not None
        assert same(multimodal, text)


@pytest.mark.parametrize("stored", ["no head", "no embedding", "equal", "different"])
@pytest.mark.parametrize(("partition", "tp"), [((2,), 2), ((1, 1), 1), ((1, 1), 2)])
def test_all_layouts_decide_alike(
    whole: Path, tmp_path: Path, stored: str, partition: tuple[int, ...], tp: int
) -> None:
    folder = variant(whole, tmp_path / "variant", True, True, stored)
    one, other = ours(folder), ours(folder, partition, tp)
    assert one is not None
    assert other is not None
    assert same(one, other)


def test_equal_tensors_are_held_once(whole: Path, tmp_path: Path) -> None:
    config, checkpoint = settle_head(folder := variant(whole, tmp_path, True, True, "equal"), read_config(folder))
    assert config.tie_word_embeddings
    (plan,) = plan_all_ranks(config, 1, (2,), "float32", checkpoint)
    assert "lm_head.weight" not in {parameter.name for parameter in plan.parameters}
    assert checkpoint.ignored["lm_head.weight"] == "the config ties the head to the embedding, and they are equal"


def test_a_difference_in_the_last_value_is_seen(whole: Path, tmp_path: Path) -> None:
    folder = variant(whole, tmp_path, True, True, "equal")
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert not settle_head(folder, read_config(folder))[0].tie_word_embeddings


@pytest.mark.parametrize(
    ("flag", "stored", "reads_data"), [(False, "equal", False), (True, "no head", False), (True, "equal", True)]
)
def test_the_tensors_are_read_only_if_the_flag_ties_and_both_are_stored(
    whole: Path, tmp_path: Path, flag: bool, stored: str, reads_data: bool
) -> None:
    folder = variant(whole, tmp_path, flag, flag, stored)
    config: ModelConfig = read_config(folder)
    headers, checkpoint = bytes_read_by(lambda: open_checkpoint(folder, config))
    num_bytes, _ = bytes_read_by(lambda: settle_head(folder, config))
    both = 2 * checkpoint.tensors["embed_tokens.weight"].num_bytes
    assert (num_bytes == headers) if not reads_data else (2 * headers + both <= num_bytes <= 2 * headers + both + 2**20)
