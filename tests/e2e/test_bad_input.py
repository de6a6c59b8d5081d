"""A mistake on the command line or in a checkpoint: one line that says what and where, a code, no process left."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checkpoints import WEIGHTS, change_header, change_json, copy_demo, own_weights, with_index
from tests.e2e.servers import processes_of, run_dirs, run_forked


def refusal(temporary: Path, *arguments: object, code: int = 1) -> str:
    """The one line of a ``serve`` that refuses."""
    finished = run_forked(temporary, "serve", *arguments)
    assert finished.returncode == code, finished.stderr
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("splitrank serve: error: ")
    assert not processes_of(temporary)
    assert not run_dirs(temporary)
    return line


# ------------------------------------------------------------------ the command


def test_a_port_in_use_is_said_before_the_model_is_looked_at(temporary: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(temporary, "--port", port, "--model", temporary / "absent")
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


WRONG_OPTIONS: dict[str, tuple[list[object], int, list[str]]] = {
    "tp that does not divide": (["--tp", 3], 1, ["3", "4"]),
    "pp above the layers": (["--pp", 9], 1, ["9", "8"]),
    "partition that does not sum": (["--pp", 2, "--pp-partition", "4,5"], 1, ["9", "8"]),
    "partition of another length": (["--pp", 2, "--pp-partition", "8"], 2, ["1 stages", "2"]),
    "partition with an empty stage": (["--pp", 2, "--pp-partition", "8,0"], 2, ["[8, 0]"]),
    "context above the model's": (["--max-model-len", 9000], 1, ["9000", "8192"]),
    "too few pages": (["--num-pages", 2, "--max-model-len", 1000], 1, ["2 KV pages of 64", "1000"]),
    "misspelt flag": (["--ppp", 2], 2, ["--ppp", "--pp"]),
    "no number": (["--pp", "two"], 2, ["--pp", "two"]),
    "unknown dtype": (["--dtype", "int8"], 2, ["int8", "bfloat16"]),
    "more pages than memory": (["--num-pages", 2**31 - 1], 1, ["2147483647 KV pages", "GiB"]),
    "context of one token": (["--max-model-len", 1], 2, ["max_model_len 1"]),
    "more threads than torch takes": (["--threads-per-rank", 100000], 2, ["threads_per_rank", "100000"]),
    "a number of 20 digits": (["--seed", 10**20], 2, ["seed", str(10**20)]),
    "an unset variable": (["--model", ""], 2, ["model is empty"]),
    "too little memory": (["--mem-fraction-static", "1e-9"], 1, ["GiB"]),
}


@pytest.mark.parametrize("wrong", WRONG_OPTIONS)
def test_wrong_options(temporary: Path, wrong: str) -> None:
    arguments, code, said = WRONG_OPTIONS[wrong]
    line = refusal(temporary, "--port", 0, *arguments, code=code)
    for words in said:
        assert words in line


def test_an_unknown_key_of_the_configuration_file(temporary: Path) -> None:
    file = temporary / "serve.toml"
    file.write_text("pp = 2\nmax_model_length = 100\n")
    line = refusal(temporary, "--config", file, code=2)
    assert str(file) in line
    assert "max_model_length" in line
    assert "max_model_len?" in line


# ------------------------------------------------------------------ the checkpoint

SOME_TENSOR = "model.language_model.layers.3.self_attn.q_proj.weight"


def truncate(folder: Path) -> None:
    own_weights(folder, lambda data: data[:-1000])


def empty_shard(folder: Path) -> None:
    own_weights(folder, lambda data: b"")


def pickled_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def missing_tensor(folder: Path) -> None:
    own_weights(folder, lambda data: change_header(data, lambda header: header.pop(SOME_TENSOR)))


def extra_tensor(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        header["model.language_model.extra.weight"] = {"dtype": "BF16", "shape": [2], "data_offsets": [end, end + 4]}

    own_weights(folder, lambda data: change_header(data, change) + bytes(4))


def other_shape(folder: Path) -> None:
    own_weights(folder, lambda data: change_header(data, lambda header: header[SOME_TENSOR]["shape"].reverse()))


def other_dtype(folder: Path) -> None:
    own_weights(folder, lambda data: change_header(data, lambda header: header[SOME_TENSOR].update(dtype="I16")))


def missing_shard(folder: Path) -> None:
    with_index(folder, lambda name: "model-2.safetensors" if name == SOME_TENSOR else "model-1.safetensors")


def shard_outside(folder: Path) -> None:
    with_index(folder, lambda name: "../model-1.safetensors" if name == SOME_TENSOR else "model-1.safetensors")


def absolute_shard(folder: Path) -> None:
    with_index(folder, lambda name: str(folder / "model-1.safetensors"))


def more_layers_in_the_config(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["text_config"]["num_hidden_layers"] = 12
        config["text_config"]["layer_types"] += config["text_config"]["layer_types"][:4]

    change_json(folder / "config.json", change)


def other_architecture(folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c.update(model_type="llama", architectures=["LlamaForCausalLM"]))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def larger_vocabulary(folder: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        added = tokenizer["added_tokens"]
        first = added[-1]["id"] + 1
        added += [{**added[-1], "id": token, "content": f"<|extra {token}|>"} for token in range(first, 4100)]

    change_json(folder / "tokenizer.json", change)


def torn_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen3_5_moe"')


BROKEN: list[tuple[Callable[[Path], None], list[str]]] = [
    (truncate, [WEIGHTS]),
    (empty_shard, [WEIGHTS]),
    (pickled_only, ["pickle"]),
    (no_weights, ["safetensors"]),
    (missing_tensor, [WEIGHTS, "layers.3.self_attn.q_proj.weight"]),
    (extra_tensor, [WEIGHTS, "model.language_model.extra.weight"]),
    (other_shape, [WEIGHTS, SOME_TENSOR]),
    (other_dtype, [WEIGHTS, SOME_TENSOR, "I16"]),
    (missing_shard, ["model-2.safetensors"]),
    (shard_outside, ["../model-1.safetensors", "index.json"]),
    (absolute_shard, ["model-1.safetensors", "index.json"]),
    (more_layers_in_the_config, ["layers.8"]),
    (other_architecture, ["config.json", "llama"]),
    (no_tokenizer, ["tokenizer.json"]),
    (larger_vocabulary, ["4100", "4096"]),
    (torn_config, ["config.json"]),
]


@pytest.mark.parametrize(("break_it", "said"), BROKEN, ids=[break_it.__name__ for break_it, _ in BROKEN])
def test_broken_checkpoints(temporary: Path, break_it: Callable[[Path], None], said: list[str]) -> None:
    folder = copy_demo(temporary / "model")
    break_it(folder)
    line = refusal(temporary, "--port", 0, "--pp", 2, "--model", folder)
    for words in said:
        assert words in line


def test_the_copies_are_good_until_broken(temporary: Path) -> None:
    """Otherwise the tests above might refuse for another reason."""
    folder = copy_demo(temporary / "model")
    finished = run_forked(temporary, "inspect", "--model", folder)
    assert finished.returncode == 0, finished.stderr
    with_index(folder, lambda name: "model-1.safetensors")
    finished = run_forked(temporary, "plan", "--model", folder, "--pp", 2)
    assert finished.returncode == 0, finished.stderr


# ------------------------------------------------------------------ a batch


def test_bad_lines_are_their_own_errors(temporary: Path) -> None:
    good = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": 2}}
    bad = [
        {**good, "custom_id": "b", "body": {"prompt": "hi", "top_k": 2**64}},
        {**good, "method": "GET"},
        {**good, "custom_id": "c", "body": {"prompt": "hi", "max_tokens": 10**6}},
    ]
    lines = [json.dumps(line) for line in (bad[0], good, *bad[1:])] + ["{", json.dumps({**good, "custom_id": "d"})]
    (temporary / "in.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    finished = run_forked(temporary, "generate", "--input", temporary / "in.jsonl", "--output", temporary / "out")
    assert finished.returncode == 3, finished.stderr
    assert "Traceback" not in finished.stderr
    assert f"2 answered, 4 failed (the first: {temporary / 'in.jsonl'}:" in finished.stderr
    results = [json.loads(line) for line in (temporary / "out").read_text().splitlines()]
    assert {result["custom_id"] for result in results if result["error"] is None} == {"a", "d"}
    errors = {result["error"]["line"]: result["error"]["message"] for result in results if result["error"]}
    assert set(errors) == {1, 3, 4, 5}
    assert "top_k" in errors[1]
    assert not processes_of(temporary)
