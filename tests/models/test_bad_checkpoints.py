"""Checkpoints that cannot be served: one line that names the file and, where there is one, the tensor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import read_config
from splitrank.models.errors import CheckpointError
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.raw_safetensors import add_tensor, edit_header, read_raw, write_raw

P = "model.language_model."
NORM = P + "layers.1.input_layernorm.weight"
EXPERTS = P + "layers.0.mlp.experts.down_proj"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def reference() -> Any:
    return make_reference(random_text_config(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]))


@pytest.fixture
def single(reference: Any, tmp_path: Path) -> Path:
    return write_checkpoint(reference, tmp_path / "single")


@pytest.fixture
def sharded(reference: Any, tmp_path: Path) -> Path:
    return write_checkpoint(reference, tmp_path / "sharded", shards=3, with_mtp=True)


def refusal(folder: Path) -> str:
    """The message of what opening raises: a user's mistake, on one line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, read_config(folder))
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def truncate(name: str, keep: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def header(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_header(folder / SINGLE, lambda h: edit(h) and None)


def entry(name: str, **changes: Any) -> Damage:
    return header(lambda h: h[name].update(changes))


def twice_in_header(folder: Path) -> None:
    parsed, data = read_raw(folder / SINGLE)
    text = json.dumps(parsed)
    write_raw(folder / SINGLE, text[:-1] + f', "{NORM}": {json.dumps(parsed[NORM])}}}', data)


def add(name: str, dtype: str, shape: list[int], num_bytes: int) -> Damage:
    return lambda folder: add_tensor(folder / SINGLE, name, dtype, shape, num_bytes)


def overlap(h: dict[str, Any]) -> None:
    begin, end = h[NORM]["data_offsets"]
    h[NORM]["data_offsets"] = [begin - 2, end - 2]


def wrong_type(dtype: str, item_bytes: int) -> Damage:
    """The tensor in another type, its bytes appended so that the header is right in itself."""

    def damage(folder: Path) -> None:
        edit_header(folder / SINGLE, lambda h: h.pop(NORM) and None)
        add_tensor(folder / SINGLE, NORM, dtype, [64], 64 * item_bytes)

    return damage


SINGLE_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "truncated": (lambda f: truncate(SINGLE, (f / SINGLE).stat().st_size - 10)(f), (SINGLE, "truncated", "tensor '")),
    "truncated header": (truncate(SINGLE, 100), (SINGLE, "truncated")),
    "empty": (truncate(SINGLE, 0), (SINGLE, "empty")),
    "not safetensors": (lambda f: (f / SINGLE).write_bytes(b"PK\x03\x04" * 100), (SINGLE, "not safetensors")),
    "header not JSON": (lambda f: write_raw(f / SINGLE, "{nonsense", b""), (SINGLE, "not valid JSON")),
    "header a list": (lambda f: write_raw(f / SINGLE, "[]", b""), (SINGLE, "not a JSON object")),
    "header deep": (lambda f: write_raw(f / SINGLE, "[" * 100_000, b""), (SINGLE, "not valid JSON")),
    "missing": (header(lambda h: h.pop(NORM)), (SINGLE, "layers.1.input_layernorm.weight", "missing")),
    "missing several": (header(lambda h: [h.pop(NORM), h.pop(EXPERTS)]), ("and 1 more",)),
    "extra": (add(P + "layers.1.surprise", "BF16", [2], 4), (SINGLE, "layers.1.surprise", "not part")),
    "extra scale": (add(P + "layers.1.mlp.gate.weight_scale_inv", "BF16", [1], 2), ("weight_scale_inv", "not part")),
    "layer too many": (add(P + "layers.2.input_layernorm.weight", "BF16", [64], 128), ("layers.2.input_layernorm",)),
    "shape": (entry(NORM, shape=[32, 2]), (SINGLE, NORM, "[32, 2]", "[64]")),
    "shape and bytes": (entry(NORM, shape=[63]), (SINGLE, NORM, "[63]", "126", "128")),
    "expert shape": (entry(EXPERTS, shape=[8, 32, 64]), (EXPERTS, "[8, 32, 64]", "[8, 64, 32]")),
    "I32": (wrong_type("I32", 4), (SINGLE, NORM, "I32", "BF16, F16, F32")),
    "F8": (wrong_type("F8_E4M3", 1), (SINGLE, NORM, "F8_E4M3")),
    "dtype a list": (entry(NORM, dtype=["BF16"]), (SINGLE, NORM, "malformed")),
    "no offsets": (header(lambda h: h[NORM].pop("data_offsets")), (SINGLE, NORM, "malformed")),
    "negative shape": (entry(NORM, shape=[-64]), (SINGLE, NORM, "malformed")),
    "offsets backwards": (entry(NORM, data_offsets=[128, 0]), (SINGLE, NORM, "malformed")),
    "offsets as text": (entry(NORM, data_offsets=["0", "128"]), (SINGLE, NORM, "malformed")),
    "beyond the end": (entry(NORM, data_offsets=[10**9, 10**9 + 128]), (SINGLE, NORM, "truncated")),
    "overlap": (header(overlap), (SINGLE, "overlaps")),
    "twice in the header": (twice_in_header, (SINGLE, NORM, "twice")),
    "both namings": (add(NORM.replace("language_model.", ""), "BF16", [64], 128), (SINGLE, NORM, "duplicate")),
    "fused and per expert": (
        add(P + "layers.0.mlp.experts.3.down_proj.weight", "BF16", [64, 32], 4096),
        (SINGLE, "experts.3.down_proj.weight", "duplicate", EXPERTS),
    ),
    "a per-expert set with a hole": (
        header(lambda h: [h.update({f"{EXPERTS[:-9]}0.down_proj.weight": {**h.pop(EXPERTS), "shape": [8 * 64, 32]}})]),
        ("experts.1.down_proj.weight", "missing", "and 6 more"),
    ),
    "a link to nothing": (
        lambda f: ((f / SINGLE).unlink(), (f / SINGLE).symlink_to("blobs/absent")),
        (SINGLE, "a link to blobs/absent, which does not exist"),
    ),
    "no weights": (lambda f: (f / SINGLE).unlink(), ("no weights", SINGLE, INDEX)),
    "pickle only": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), ("pytorch_model.bin", "pickled")),
    "another name": (lambda f: (f / SINGLE).rename(f / "weights.safetensors"), ("neither", SINGLE)),
    "a folder": (lambda f: [(f / SINGLE).unlink(), (f / SINGLE).mkdir()], (SINGLE, "cannot be read")),
}


@pytest.mark.parametrize("damage", SINGLE_DAMAGE, ids=str)
def test_single_file(single: Path, damage: str) -> None:
    open_checkpoint(single, read_config(single))
    act, words = SINGLE_DAMAGE[damage]
    act(single)
    message = refusal(single)
    assert [word for word in words if word not in message] == [], message


def shard(number: int) -> str:
    return f"model-{number:05}-of-00003.safetensors"


def index(edit: Callable[[dict[str, str]], object]) -> Damage:
    def damage(folder: Path) -> None:
        parsed = json.loads((folder / INDEX).read_text())
        edit(parsed["weight_map"])
        (folder / INDEX).write_text(json.dumps(parsed))

    return damage


def place(tensor: str, file: Any) -> Damage:
    return index(lambda weight_map: weight_map.update({tensor: file}))


SHARDED_DAMAGE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing shard": (lambda f: (f / shard(2)).unlink(), (shard(2), "missing shard", "1 of 3")),
    "empty shard": (truncate(shard(3), 0), (shard(3), "empty")),
    "truncated shard": (lambda f: truncate(shard(2), (f / shard(2)).stat().st_size - 1)(f), (shard(2), "truncated")),
    "outside": (place(NORM, "../elsewhere.safetensors"), (INDEX, NORM, "../elsewhere", "outside")),
    "below": (place(NORM, "sub/a.safetensors"), (INDEX, NORM, "sub/a", "outside")),
    "absolute": (place(NORM, "/etc/passwd"), (INDEX, NORM, "/etc/passwd", "outside")),
    "dots": (place(NORM, ".."), (INDEX, NORM, "outside")),
    "not a name": (place(NORM, 7), (INDEX, NORM, "7")),
    "another shard": (place(NORM, shard(1)), (shard(1), NORM, "not in this file")),
    "only in the index": (place(P + "ghost", shard(1)), (shard(1), "ghost", "not in this file")),
    "not in the index": (index(lambda m: m.pop(NORM)), (NORM, "the index does not place it there")),
    "empty map": (index(lambda m: m.clear()), (INDEX, "empty")),
    "not JSON": (lambda f: (f / INDEX).write_text("{"), (INDEX, "not readable as JSON")),
    "no map": (lambda f: (f / INDEX).write_text("{}"), (INDEX, "not a safetensors index")),
    "map a list": (lambda f: (f / INDEX).write_text('{"weight_map": []}'), (INDEX, "not a safetensors index")),
}


@pytest.mark.parametrize("damage", SHARDED_DAMAGE, ids=str)
def test_sharded(sharded: Path, damage: str) -> None:
    open_checkpoint(sharded, read_config(sharded))
    act, words = SHARDED_DAMAGE[damage]
    act(sharded)
    message = refusal(sharded)
    assert [word for word in words if word not in message] == [], message


def test_the_same_tensor_in_two_shards_is_a_duplicate(sharded: Path) -> None:
    """The index can name one of them only; the other is then in a file where the index does not place it."""
    weight_map = json.loads((sharded / INDEX).read_text())["weight_map"]
    other = next(name for name in sorted(set(weight_map.values())) if name != weight_map[NORM])
    add_tensor(sharded / other, NORM, "BF16", [64], 128)
    message = refusal(sharded)
    assert other in message
    assert NORM in message


def test_no_such_folder(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path / "nowhere")


# ------------------------------------------------------------------ config.json against the weights, and by itself

TEXT_DAMAGE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "fewer layers": (
        {"num_hidden_layers": 1, "layer_types": ["linear_attention"]},
        ("layers.1.", "not part of the model that config.json describes"),
    ),
    "more layers": (
        {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        ("layers.2.", "missing"),
    ),
    "other layer types": ({"layer_types": ["full_attention", "linear_attention"]}, ("layers.0.self_attn", "missing")),
    "hidden size": ({"hidden_size": 96}, ("[384, 64]", "[384, 96]")),
    "experts": ({"num_experts": 16}, ("mlp.", "8", "16")),
    "expert width": ({"moe_intermediate_size": 16}, ("mlp.experts.", "config.json implies")),
    "vocabulary": ({"vocab_size": 512}, ("embed_tokens.weight", "[384, 64]", "[512, 64]")),
    "heads": ({"num_attention_heads": 8}, ("self_attn.q_proj.weight", "[256, 64]", "[512, 64]")),
    "tied": ({"tie_word_embeddings": "yes"}, ("tie_word_embeddings", "'yes'")),
    "layers do not match types": ({"num_hidden_layers": 4}, ("layer_types", "4")),
    "unknown layer type": ({"layer_types": ["linear_attention", "mamba"]}, ("layer_types[1]", "'mamba'")),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, ("quantization_config", "not supported")),
    "rope type": ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, ("rope_type", "'linear'")),
    "rope not an object": ({"rope_parameters": [1]}, ("rope_parameters", "object")),
    "theta": ({"rope_parameters": {"rope_theta": -1}}, ("rope_theta", "-1")),
    "infinite theta": ({"rope_parameters": {"rope_theta": float("inf")}}, ("rope_theta", "inf")),
    "rotary too large": ({"rope_parameters": {"partial_rotary_factor": 2.0}}, ("partial_rotary_factor 2", "64")),
    "rotary odd": ({"rope_parameters": {"partial_rotary_factor": 0.1}}, ("partial_rotary_factor 0.1", "3")),
    "zero": ({"hidden_size": 0}, ("hidden_size", "positive integer", "0")),
    "text for a number": ({"num_experts": "8"}, ("num_experts", "'8'")),
    "boolean for a number": ({"head_dim": True}, ("head_dim", "True")),
    "epsilon": ({"rms_norm_eps": float("nan")}, ("rms_norm_eps", "nan")),
    "activation": ({"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "'silu'")),
    "bias": ({"attention_bias": True}, ("attention_bias", "True")),
    "no gate": ({"attn_output_gate": False}, ("attn_output_gate", "False")),
    "dtype": ({"dtype": "float8"}, ("dtype", "'float8'")),
    "kv heads": ({"num_key_value_heads": 3}, ("num_attention_heads 4", "num_key_value_heads 3")),
    "v heads": ({"linear_num_value_heads": 3}, ("linear_num_value_heads 3", "linear_num_key_heads 2")),
    "more experts a token than there are": ({"num_experts_per_tok": 9}, ("num_experts_per_tok 9", "num_experts 8")),
    "one tap": ({"linear_conv_kernel_dim": 1}, ("linear_conv_kernel_dim",)),
}


@pytest.mark.parametrize("damage", TEXT_DAMAGE, ids=str)
def test_config(single: Path, damage: str) -> None:
    changes, words = TEXT_DAMAGE[damage]
    raw = json.loads((single / "config.json").read_text())
    raw["text_config"].update(changes)
    if "tie_word_embeddings" in changes:
        del raw["tie_word_embeddings"]
    (single / "config.json").write_text(json.dumps(raw))
    message = refusal(single)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ("not readable as JSON",)),
        ("[1]", ("not a JSON object",)),
        ("{}", ("model_type", "None", "qwen3_5_moe")),
        ('{"model_type": "llama"}', ("model_type", "'llama'", "qwen3_5_moe")),
        ('{"model_type": ["qwen3_5_moe"]}', ("model_type",)),
        ('{"model_type": "qwen3_5_moe", "text_config": 3}', ("text_config",)),
        ('{"model_type": "qwen3_5_moe_text", "head_dim": null}', ("head_dim", "positive integer", "None")),
        ("[" * 100_000, ("not readable as JSON",)),
        ("\udcff", ("not readable as JSON",)),
    ],
    ids=["cut", "list", "empty", "llama", "list type", "text config", "null", "deep", "not utf-8"],
)
def test_config_file(single: Path, content: str, words: tuple[str, ...]) -> None:
    (single / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    message = refusal(single)
    assert "config.json" in message
    assert [word for word in words if word not in message] == [], message


def test_vision_and_mtp_are_ignored_by_a_written_rule(reference: Any, tmp_path: Path) -> None:
    write_checkpoint(reference, tmp_path, with_mtp=True, with_vision=True)
    checkpoint = open_checkpoint(tmp_path, read_config(tmp_path))
    kinds = {name.split(".layers")[0].split(".blocks")[0].split(".")[0:2][-1] for name in checkpoint.ignored}
    assert "visual" in kinds
    assert "mtp" in {name.split(".")[0] for name in checkpoint.ignored}
    assert all(rule for rule in checkpoint.ignored.values())
    assert not any("visual" in name or "mtp" in name for name in checkpoint.tensors)
