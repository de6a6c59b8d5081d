"""What requests are checked against comes from the launch and the checkpoint's side files."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.text.model_info import model_info


def make_spec(folder: Path, **changes: Any) -> LaunchSpec:
    (folder / "config.json").write_text("{}")
    spec = LaunchSpec(
        run_dir="", model_dir=str(folder), dtype="bfloat16", tp_size=1, pp_size=2, partition=(2, 2),
        tie_word_embeddings=False, threads_per_rank=1, max_model_len=64, max_running_requests=4, page_size=16,
        num_pages=16, chunked_prefill_size=64, max_queued_requests=8, vocab_size=300, eos_token_ids=(7,), seed=0,
        load_timeout_s=1, step_timeout_s=1, heartbeat_timeout_s=1, verify_weights=False, max_prefill_tokens=64,
        log_level="info", show_progress=False,
    )  # fmt: skip
    return msgspec.structs.replace(spec, **changes)


def write_defaults(folder: Path, **values: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


def test_defaults_of_the_checkpoint(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert model_info(spec, str(tmp_path)).defaults == {}
    write_defaults(tmp_path, temperature=0.6, top_k=20, top_p=0.95, do_sample=True, eos_token_id=[1], min_p=None)
    assert model_info(spec, str(tmp_path)).defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    write_defaults(tmp_path, temperature=1, top_k=-1)  # the API's word for off
    assert repr(model_info(spec, str(tmp_path)).defaults) == "{'temperature': 1.0, 'top_k': 0}"
    write_defaults(tmp_path, temperature=0.6, do_sample=False)
    assert model_info(spec, str(tmp_path)).defaults == {"temperature": 0.0}


@pytest.mark.parametrize("value", [{"temperature": 9}, {"top_k": "20"}, {"top_p": 0}, {"top_k": -2}, {"top_k": 2**64}])
def test_a_bad_default_is_named(tmp_path: Path, value: dict[str, Any]) -> None:
    write_defaults(tmp_path, **value)
    with pytest.raises(ValueError, match=rf"generation_config\.json: .*{next(iter(value))}"):
        model_info(make_spec(tmp_path), str(tmp_path))


def test_name(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert model_info(spec, str(tmp_path), "mine").name == "mine"
    assert model_info(spec, str(tmp_path)).name == tmp_path.name
    assert model_info(spec, "").name == tmp_path.name
    assert model_info(spec, "Qwen/Qwen3.5-35B-A3B").name == "Qwen/Qwen3.5-35B-A3B"


WITHOUT_EFFECT: dict[str, Any] = {
    "run_dir": "elsewhere", "max_running_requests": 5, "max_queued_requests": 5, "num_pages": 5, "state_bytes": 5,
    "kv_page_bytes": 5, "load_timeout_s": 5.0, "step_timeout_s": 5.0, "heartbeat_timeout_s": 5.0, "log_level": "debug",
    "show_progress": True, "front_pid": 5, "pin_threads": True, "num_nodes": 2, "node_rank": 1,
    "init_address": "10.0.0.1:5", "bind": "10.0.0.1", "secret_file": "secret", "join_timeout_s": 5.0,
    "engine_address": "10.0.0.1:5", "links": {1: "10.0.0.2:5"},
}  # fmt: skip


def test_every_setting_but_those_listed_here_is_in_the_fingerprint(tmp_path: Path) -> None:
    """A new field of the launch spec counts, until somebody decides otherwise."""
    spec = make_spec(tmp_path, tp_size=2)
    first = model_info(spec, "").fingerprint
    assert "-tp2-pp2-" in first
    for name in LaunchSpec.__struct_fields__:
        if name == "model_dir":
            continue
        now = getattr(spec, name)
        other = WITHOUT_EFFECT.get(name)
        if other is None:
            other = (*now, 5) if isinstance(now, tuple) else f"not {now}" if isinstance(now, str) else now + 5
        changed = msgspec.structs.replace(spec, **{name: other})
        assert changed != spec
        assert (model_info(changed, "").fingerprint == first) == (name in WITHOUT_EFFECT), name


def test_config_and_sampling_defaults_are_in_the_fingerprint(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    fingerprints = {model_info(spec, "").fingerprint}
    write_defaults(tmp_path, temperature=0.6)
    fingerprints.add(model_info(spec, "").fingerprint)
    (tmp_path / "config.json").write_text('{"other": 1}')
    fingerprints.add(model_info(spec, "").fingerprint)
    assert len(fingerprints) == 3
    elsewhere = tmp_path / "copy"
    shutil.copytree(tmp_path, elsewhere)
    moved = msgspec.structs.replace(spec, model_dir=str(elsewhere))
    assert model_info(moved, "").fingerprint in fingerprints
