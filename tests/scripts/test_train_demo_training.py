"""The training program on a CPU: the same function as transformers', resumable, exported as the hub has it."""

import json
import os
import random
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from batches import LENGTHS, DataOptions, batches_from, encode, make_batches
from delta_rule import chunked_delta_rule, invert_unit_lower
from documents import Example, Exchange, chat, solved_examples
from evaluation import Score, Task, chat_prompt, evaluate, generate, question_prompt
from export import MAX_FILE_BYTES, read_weights, write_weights
from model import balance_loss, build_model, num_parameters, training_loss
from model_config import hub_config, text_config, tiny_text_config
from plot_curves import draw, end_to_end
from safetensors import safe_open
from schedule import learning_rate
from tokenizers import Tokenizer
from train import Options, Run
from transformers import Qwen3_5MoeForCausalLM
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import torch_chunk_gated_delta_rule

from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from tests.support.limits import PROGRAM_S, scaled

TOKENIZER_FILE = str(demo_checkpoint_path() / "tokenizer.json")


def random_ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, 4000, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tokens", [64, 150])
@pytest.mark.parametrize("sameness", [0.0, 3.0])  # of the keys: the hard case for the inverse
def test_the_delta_rule_is_that_of_transformers(tokens: int, sameness: float) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, tokens, heads, 32) + shift for heads, shift in ((2, 0), (2, sameness), (4, 0))]
    inputs += [-torch.rand(2, tokens, 4), torch.rand(2, tokens, 4)]
    for tensor in inputs:
        tensor.requires_grad_()
    ours = chunked_delta_rule(*inputs)
    query, key, value, g, beta = inputs
    query, key = query.repeat_interleave(2, dim=2), key.repeat_interleave(2, dim=2)  # before 5.20 the caller's part
    theirs, _ = torch_chunk_gated_delta_rule(query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(ours)
    for mine, wanted in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((theirs * direction).sum(), inputs),
        strict=True,
    ):
        assert (mine - wanted).norm() <= 1e-4 * wanted.norm()


def test_the_inverse_keeps_its_digits_when_all_keys_are_equal() -> None:
    strict = torch.ones(64, 64).tril(-1)
    exact = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + strict.double())
    assert (invert_unit_lower(strict).double() - exact).abs().max() < 1e-4


def test_the_fast_forward_is_the_same_function() -> None:
    fast, plain = (build_model(tiny_text_config(), seed=1, fast=fast).train() for fast in (True, False))
    ids, weights = random_ids(3, 100), torch.ones(3, 100)
    weights[0, 60:] = -1.0
    losses = [training_loss(model, ids, weights, 0.01) for model in (fast, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for loss, balance in losses:
        (loss + balance).backward()
    for mine, wanted in zip(fast.parameters(), plain.parameters(), strict=True):
        assert (mine.grad - wanted.grad).norm() <= 1e-3 * wanted.grad.norm() + 1e-7


def test_padding_on_the_right_changes_no_loss() -> None:
    model = build_model(tiny_text_config(), seed=1).train()
    ids, weights = random_ids(2, 48), torch.ones(2, 48)
    padded = torch.nn.functional.pad(ids, (0, 32), value=4044)
    loss = training_loss(model, ids, weights, 0.01)
    longer = training_loss(model, padded, torch.nn.functional.pad(weights, (0, 32), value=-1.0), 0.01)
    torch.testing.assert_close(loss, longer, rtol=1e-5, atol=1e-6)


def test_the_balance_loss_is_one_when_even_and_the_number_of_experts_when_all_choose_one() -> None:
    real = torch.ones(4, dtype=torch.bool)
    even = (torch.zeros(4, 4), torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]))
    assert balance_loss([even], real).item() == pytest.approx(1.0)
    one = (torch.tensor([[50.0, 0, 0, 0]] * 4), torch.zeros(4, 1, dtype=torch.int64))
    assert balance_loss([one], real).item() == pytest.approx(4.0)


def test_batches_have_one_length_and_lose_at_most_the_last_few_rows() -> None:
    rng = random.Random(1)
    rows = [([5] * size, [1.0] * size) for size in (rng.randint(10, 2100) for _ in range(500))]
    batches = make_batches(rows, 8192, rng)
    assert all(ids.shape[1] in LENGTHS and ids.numel() <= 8192 for ids, _ in batches)
    fitting = sum(len(ids) <= LENGTHS[-1] for ids, _ in rows)
    assert fitting - 4 <= sum(len(ids) for ids, _ in batches) <= fitting
    assert all(((weights < 0) == (ids == 4044)).all() for ids, weights in batches)


def test_data_goes_on_at_the_batch_where_it_stopped() -> None:
    options = DataOptions(TOKENIZER_FILE, [], "1", tokens_per_batch=2048, documents_per_block=40)
    source = batches_from(options, 0, 0, num_workers=0, pin=False)
    begun = [next(source) for _ in range(12)]
    block, offset, _ = begun[7]
    again = batches_from(options, block, offset, num_workers=0, pin=False)
    for (*place, (ids, weights)), (*place_2, (ids_2, weights_2)) in zip(begun[7:], again, strict=False):
        assert place == place_2
        assert torch.equal(ids, ids_2)
        assert torch.equal(weights, weights_2)


def run_options(work: Path) -> Options:
    return Options(
        tokenizer=TOKENIZER_FILE,
        work=str(work),
        total_steps=6,
        tokens_per_batch=1024,
        documents_per_block=40,
        warmup_steps=2,
        log_every=1,
        evaluate_every_s=0.0,
        workers=0,
        tiny=True,
    )


def as_flags(options: Options) -> list[str]:
    """Those that are not the defaults."""
    values = [(one.name.replace("_", "-"), getattr(options, one.name), one.default) for one in fields(options)]
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value, usual in values if value != usual]


def read_lines(work: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (work / "curves.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "tokens", "loss", "balance", "norm")} for line in lines]


def test_a_resumed_run_has_the_same_curve(tmp_path: Path, capsys) -> None:
    whole, parts = run_options(tmp_path / "whole"), run_options(tmp_path / "parts")
    Run(whole).train()
    Run(replace(parts, stop_after=3)).train()
    Run(replace(parts, resume=True)).train()
    assert read_lines(tmp_path / "whole") == read_lines(tmp_path / "parts")
    assert [line["step"] for line in read_lines(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]
    assert read_lines(tmp_path / "whole")[-1]["loss"] < read_lines(tmp_path / "whole")[0]["loss"]
    weights = [(tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "curves.jsonl").read_text().splitlines()]
    assert draw([*lines, {"step": 6, "seconds": 9.0, "accuracy": {"seen": 0.5}}]).count("<polyline") == 2


@pytest.mark.full
def test_two_processes_take_turns_with_the_batches_of_one(tmp_path: Path, capsys) -> None:
    """One process with two batches a step, two with one each: the same gradients, so the same weights."""
    one = replace(run_options(tmp_path / "one"), total_steps=3, accumulate=2, float32=True)
    Run(one).train()
    two = replace(one, work=str(tmp_path / "two"), accumulate=1)
    program = Path(sys.modules["train"].__file__ or "")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    subprocess.run(
        [sys.executable, *command, *as_flags(two)],
        check=True,
        timeout=scaled(PROGRAM_S),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [read_lines(tmp_path / name)[-1] for name in ("one", "two")]
    assert lines[0]["step"] == lines[1]["step"] == 3
    assert lines[1]["norm"] == pytest.approx(lines[0]["norm"], rel=1e-3)
    models = [build_model(tiny_text_config(), seed=0) for _ in lines]
    for model, name in zip(models, ("one", "two"), strict=True):
        read_weights(model, tmp_path / name / "export")
    for mine, wanted in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (mine - wanted).norm() <= 1e-2 * wanted.norm()


def test_curves_of_one_run_after_the_other_are_one_picture() -> None:
    first, second = ([{"seconds": seconds, "loss": 1.0} for seconds in times] for times in ((60.0, 120.0), (30.0,)))
    assert [line["seconds"] for line in end_to_end([first, second])] == [60.0, 120.0, 150.0]


def test_a_run_ends_in_time(tmp_path: Path, capsys) -> None:
    run = Run(replace(run_options(tmp_path), time_limit_s=0.0))
    run.train()
    assert run.progress.step == 0
    assert (tmp_path / "last.pt").exists()


def test_greedy_answers_do_not_depend_on_padding() -> None:
    model, tokenizer = build_model(tiny_text_config(), seed=3).eval(), Tokenizer.from_file(TOKENIZER_FILE)
    prompts = ["Question: How many?\nAnswer:", "Question: A much longer one, how many apples are there?\nAnswer:"]
    together = generate(model, tokenizer, prompts, max_new_tokens=8)
    assert together == [generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_what_is_learnt_by_heart_is_said_and_ends() -> None:
    """Shifts, weights, padding, prompts and stops all have to fit together for this."""
    model, tokenizer = build_model(tiny_text_config(), seed=3).train(), Tokenizer.from_file(TOKENIZER_FILE)
    documents = [
        solved_examples([Example("2 + 3 apples?", "2 + 3 = 5\n#### 5")]),
        chat([Exchange("4 * 2?", "four times two", "4 * 2 = 8\n#### 8")], "", thinking=True),
    ]
    batches = make_batches([encode(tokenizer, document) for document in documents], 64, random.Random(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        for ids, weights in batches:
            loss, balance = training_loss(model, ids.long(), weights, 0.01)
            (loss + balance).backward()
        optimizer.step()
    prompts = [question_prompt("2 + 3 apples?", []), chat_prompt("4 * 2?", thinking=True)]
    assert generate(model.eval(), tokenizer, prompts, max_new_tokens=40) == [
        (" 2 + 3 = 5\n#### 5", True),
        ("four times two\n</think>\n\n4 * 2 = 8\n#### 8", True),
    ]
    tasks = {"one": [Task(prompts[0], "5"), Task(prompts[0], "6")], "chat": [Task(prompts[1], "8")]}
    assert evaluate(model, tokenizer, tasks) == {"one": Score(1, 2, 0), "chat": Score(1, 1, 0)}
    assert model.training


def test_an_export_is_what_transformers_loads(tmp_path: Path) -> None:
    model = build_model(tiny_text_config(), seed=2)
    parts = write_weights(model, tmp_path, max_file_bytes=300_000)
    assert len(parts) > 1
    (tmp_path / "config.json").write_text(json.dumps(hub_config(tiny_text_config())))
    loaded, report = Qwen3_5MoeForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    again = build_model(tiny_text_config(), seed=9)
    read_weights(again, tmp_path)
    for (name, rounded), original in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(rounded, loaded.get_parameter(name)), name
        kept = name.endswith(("A_log", "linear_attn.norm.weight"))
        assert torch.equal(rounded, original if kept else original.bfloat16().float()), name


def test_the_real_model_fits_git_and_has_the_names_and_types_of_the_demo(tmp_path: Path) -> None:
    model = build_model(text_config(), seed=0)
    assert num_parameters(model) <= 15_900_000
    assert all(path.stat().st_size <= MAX_FILE_BYTES + 2**16 for path in write_weights(model, tmp_path))
    (file,) = write_weights(model, tmp_path, max_file_bytes=2**30)
    assert file.stat().st_size <= 32_000_000
    with safe_open(file, "pt") as ours, safe_open(demo_checkpoint_path() / "model.safetensors", "pt") as demo:
        types = [{name: one.get_slice(name).get_dtype() for name in one.keys()} for one in (ours, demo)]  # noqa: SIM118
    assert types[0] == types[1]


def test_the_rate_rises_stays_and_falls() -> None:
    assert learning_rate(1.0, 0, 0.0, 10) == pytest.approx(0.1)
    assert learning_rate(1.0, 50, 0.5, 10) == 1.0
    assert 0 < learning_rate(1.0, 50, 0.9, 10) < 0.5
    assert learning_rate(1.0, 50, 1.2, 10) == 0.0
