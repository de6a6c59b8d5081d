"""``splitrank plan`` and ``inspect``: the real models' numbers from a bare config, and what a checkpoint holds."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.plan_command import InspectConfig, PlanConfig, run_inspect, run_plan
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.large_shapes import LARGE_SHAPES
from tests.support.limits import PROGRAM_S, scaled

ROOT = Path(__file__).parents[2]
# Parameters of the text models, by hand. A layer: 2 H + (E + 1) H of router and gate + 3 H I (E + 1) of experts; a
# DeltaNet mixer: H (2 Kd + 2 Vd + 2 v) + Vd H + 4 (2 Kd + Vd) + 2 v + 128; attention: H (2 q + 2 kv + q) + 2 * 256.
# A_log, dt_bias and the gated norm are computed in float32, all else in bfloat16.
WEIGHTS = {"35B": 69_321_232_896, "122B": 244_223_072_256, "397B": 792_692_723_712}
KV_PER_TOKEN = {"35B": 20_480, "122B": 24_576, "397B": 30_720}
DELTA_STATE = {"35B": 30 * 32, "122B": 36 * 64, "397B": 45 * 64}  # heads over all layers, 128 x 128 floats each


def by_hand(shape: dict[str, Any]) -> int:
    """Bytes of the text model, from the formula above."""
    hidden, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["moe_intermediate_size"]
    experts, v_heads = shape["num_experts"], shape["linear_num_value_heads"]
    key_dim, value_dim, q_dim, kv_dim = 16 * 128, v_heads * 128, shape["num_attention_heads"] * 256, 2 * 256
    every_layer = 2 * hidden + (experts + 1) * hidden + 3 * hidden * inner * (experts + 1)
    linear = hidden * (2 * key_dim + 2 * value_dim + 2 * v_heads) + value_dim * hidden + 4 * (2 * key_dim + value_dim)
    full = hidden * (2 * q_dim + 2 * kv_dim + q_dim) + 2 * 256
    bfloat16 = layers * every_layer + layers // 4 * (3 * linear + full) + (2 * shape["vocab_size"] + 1) * hidden
    return 2 * bfloat16 + 4 * (layers // 4 * 3) * (2 * v_heads + 128)


def write_config(folder: Path, model: str, **changes: Any) -> str:
    file = folder / f"{model}.json"
    file.write_text(json.dumps({**LARGE_SHAPES[model], **changes}))
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    assert run_plan(PlanConfig(**options)) == 0
    return capsys.readouterr().out


def rank_rows(text: str) -> list[list[int]]:
    """Rank, stage, tp, first layer, last layer, weight bytes, KV bytes a token, state bytes a request."""
    pattern = r"^ *(\d+) +(\d+) +(\d+) +(\d+)-(\d+) +([\d,]+) +[\d.]+ +([\d,]+) +([\d,]+)$"
    return [[int(n.replace(",", "")) for n in row] for row in re.findall(pattern, text, re.MULTILINE)]


@pytest.mark.parametrize("model", LARGE_SHAPES)
def test_the_real_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    text = printed(capsys, model=write_config(tmp_path, model))
    (row,) = rank_rows(text)
    assert row[5] == WEIGHTS[model] == by_hand(LARGE_SHAPES[model])
    assert row[6] == KV_PER_TOKEN[model]
    layers, v_heads = LARGE_SHAPES[model]["num_hidden_layers"], LARGE_SHAPES[model]["linear_num_value_heads"]
    assert row[7] == DELTA_STATE[model] * 128 * 128 * 4 + layers // 4 * 3 * (2 * 2048 + v_heads * 128) * 3 * 2
    assert f"{WEIGHTS[model]:,} bytes" in text
    assert ("(64.56 GiB)" in text) == (model == "35B")


@pytest.mark.parametrize("model", LARGE_SHAPES)
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_the_stages_together_are_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, pp: int
) -> None:
    rows = rank_rows(printed(capsys, model=write_config(tmp_path, model), pp=pp))
    assert len(rows) == pp
    assert sum(row[5] for row in rows) == WEIGHTS[model]
    assert sum(row[6] for row in rows) == KV_PER_TOKEN[model]
    assert [row[3] for row in rows[1:]] == [row[4] + 1 for row in rows[:-1]]


def test_tensor_ranks_share_what_cannot_be_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, "35B")
    two, four = (rank_rows(printed(capsys, model=model, tp=tp)) for tp in (2, 4))
    assert [row[6] for row in two] == [KV_PER_TOKEN["35B"] // 2] * 2
    assert [row[6] for row in four] == [KV_PER_TOKEN["35B"] // 2] * 4  # two kv heads on four ranks
    assert all(WEIGHTS["35B"] / 4 < row[5] < WEIGHTS["35B"] / 4 * 1.01 for row in four)


def test_capacity_of_a_given_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """80 GiB: 16,583 MB beside the weights and one state; at 20,480 B a token less than three times the positions."""
    options: dict[str, Any] = {"model": write_config(tmp_path, "35B"), "memory_gib": 80, "max_model_len": 8192}
    free = 80 * 2**30 - WEIGHTS["35B"]
    text = printed(capsys, **options)
    assert "largest context of one request: 262,144 tokens (the model's positions)" in text
    concurrency = free // (8192 * 20_480 + 64_389_120)
    assert f"largest concurrency at 8,192 tokens: {concurrency} requests (stage 0 limits)" in text
    tight = (WEIGHTS["35B"] + 2**30) / 2**30
    context = (int(tight * 2**30) - WEIGHTS["35B"] - 64_389_120) // 20_480
    assert f"largest context of one request: {context:,} tokens (stage 0 limits)" in printed(
        capsys, **{**options, "memory_gib": tight}
    )


def test_what_cannot_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    model = write_config(tmp_path, "35B")
    with pytest.raises(ValueError, match=r"rank 0 \(stage 0, tp 0\) needs 64\.62 GiB .* --memory-gib is 64\.5"):
        run_plan(PlanConfig(model=model, memory_gib=64.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp": 3}, "tp 3 does not divide num_attention_heads 16"),
        ({"tp": 32}, "tp 32 does not divide num_attention_heads 16"),
        ({"pp": 41}, "pp 41 exceeds the model's 40 layers"),
        ({"pp": 2, "pp_partition": (20, 19)}, r"\[20, 19\] sums to 39, but the model has 40 layers"),
        ({"max_model_len": 300_000}, "max_model_len 300000 exceeds the model's 262144 positions"),
    ],
    ids=str,
)
def test_layouts_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_plan(PlanConfig(model=write_config(tmp_path, "35B"), **options))


def test_float16_must_be_chosen_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, "35B", dtype="float16")
    with pytest.raises(ValueError, match="float16"):
        run_plan(PlanConfig(model=model))
    assert f"{WEIGHTS['35B']:,}" in printed(capsys, model=model, dtype="bfloat16")


def test_a_plan_loads_no_torch(tmp_path: Path) -> None:
    """The bare command line in a process of its own: exit code, output, and what it imported."""
    program = (
        "import sys\nfrom splitrank.serving.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(code or (f'imports {heavy}' if heavy else 0))"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "plan",
        "--model",
        write_config(tmp_path, "397B"),
        "--pp",
        "8",
        "--tp",
        "2",
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=scaled(PROGRAM_S))
    assert finished.returncode == 0, finished.stderr
    assert len(rank_rows(finished.stdout)) == 16


def test_a_checkpoint_s_plan_is_that_of_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(make_reference(random_text_config()), tmp_path, experts="mixed")
    from_weights = printed(capsys, model=str(tmp_path), pp=2)
    assert printed(capsys, model=str(tmp_path / "config.json"), pp=2) == from_weights
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        run_plan(PlanConfig(model=str(tmp_path)))


def test_inspect_says_what_a_checkpoint_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = make_reference(random_text_config(tie_word_embeddings=True))
    write_checkpoint(reference, tmp_path, experts="mixed", shards=3, with_mtp=True, with_vision=True)
    assert run_inspect(InspectConfig(model=str(tmp_path))) == 0
    text = capsys.readouterr().out
    assert "3 file(s)" in text
    assert "4 (1 full_attention, 3 linear_attention)" in text
    assert "8 routed, 2 a token; stored fused (4 of 8 projections) and per expert (4 of 8 projections)" in text
    assert "head: tied to the embedding" in text
    assert "config dtype: bfloat16" in text
    assert "F32: 6 tensors" in text
    assert "multi-token prediction" in text
    assert "vision tower" in text


def test_inspect_names_a_missing_shard(tmp_path: Path) -> None:
    write_checkpoint(make_reference(random_text_config()), tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors: missing shard \(1 of 3"):
        run_inspect(InspectConfig(model=str(tmp_path)))


def yarn(original: int) -> dict[str, Any]:
    """As the model card has it for 1,010,000 tokens."""
    return {"rope_type": "yarn", "rope_theta": 1e7, "factor": 4.0, "original_max_position_embeddings": original}


def test_yarn_stretches_the_context_that_a_plan_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, "35B", rope_parameters=yarn(262_144))
    text = printed(capsys, model=model, memory_gib=200, max_model_len=1_010_000)
    assert "largest context of one request: 1,048,576 tokens (the model's positions)" in text
    concurrency = (200 * 2**30 - WEIGHTS["35B"]) // (1_010_000 * 20_480 + 64_389_120)
    assert f"largest concurrency at 1,010,000 tokens: {concurrency} requests" in text
    with pytest.raises(ValueError, match="max_model_len 1048577 exceeds the model's 1048576 positions"):
        run_plan(PlanConfig(model=model, max_model_len=1_048_577))


def test_inspect_says_that_the_positions_are_stretched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(make_reference(random_text_config(rope_parameters=yarn(1024))), tmp_path)
    assert run_inspect(InspectConfig(model=str(tmp_path))) == 0
    assert "positions: 4,096 (YaRN, factor 4);" in capsys.readouterr().out


def test_inspect_and_plan_know_a_head_that_the_config_denies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both tensors are stored and differ: the plan has a rank hold both."""
    write_checkpoint(make_reference(random_text_config()), tmp_path)
    untied = rank_rows(printed(capsys, model=str(tmp_path)))
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert rank_rows(printed(capsys, model=str(tmp_path))) == untied
    assert run_inspect(InspectConfig(model=str(tmp_path))) == 0
    text = capsys.readouterr().out
    assert "head: its own tensor (config.json ties it to the embedding, but both are stored and differ)" in text
    assert "ignored" not in text


def test_what_a_stage_border_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: hidden state and residual of 2,048 numbers of 2 bytes are 8,192 B a token; 16 of 32 requests a step."""
    config = {"model": write_config(tmp_path, "35B"), "pp": 2, "max_running_requests": 32}
    lines = printed(capsys, **config, link_gbps=10.0, link_ms=0.5).splitlines()[-4:]
    assert lines == [
        "a stage border at 10 Gb/s and 0.5 ms, 8,192 B a token:",
        "  decode of 16 tokens: 0.131 MB, 0.605 ms a step",
        "  prefill of 512 tokens: 4.194 MB, 3.855 ms a step",
        "  each token of a request waits 1.105 ms for 2 borders, while all stages keep up",
    ]
    assert "16,384 B a token" in printed(capsys, **config, tp=2, link_gbps=10.0)
    assert "border" not in printed(capsys, model=config["model"], link_gbps=10.0)
    with pytest.raises(ValueError, match="link_ms: give --link-gbps, too"):
        PlanConfig(pp=2, link_ms=1.0)
