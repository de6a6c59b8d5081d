"""From config, checkpoint and machine to the launch spec; and refusals before any process starts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitrank.comm.selection import AllReduceOptions
from splitrank.models.config import read_config
from splitrank.models.exactness import inexact_because
from splitrank.models.memory import plan_all_ranks
from splitrank.serving.launch import devices
from splitrank.serving.launch.devices import Gpu
from splitrank.serving.launch.resolve import check_exact, check_on_device, is_exact, resolve_launch
from splitrank.serving.options.config import EngineConfig
from tests.support.checkpoints import hub_config, make_reference, random_text_config, write_checkpoint, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resolve")
    config = random_text_config(num_hidden_layers=5)
    return write_tokenizer(write_checkpoint(make_reference(config), path, shards=2), config.vocab_size)


def options(folder: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(model=str(folder), **changes)


def test_the_spec_says_what_follows(folder: Path) -> None:
    spec = resolve_launch(options(folder, pp=2, tp=2, seed=9, page_size=16, max_running_requests=3))
    assert (spec.pp_size, spec.tp_size, spec.world_size) == (2, 2, 4)
    assert sum(spec.partition) == 5
    assert spec.dtype == "bfloat16"
    assert spec.max_model_len == 1024
    assert spec.num_pages == 3 * 1024 // 16  # no more than all requests can use
    assert spec.vocab_size == 384
    assert set(spec.eos_token_ids) == {379, 381}
    assert spec.seed == 9
    assert spec.threads_per_rank >= 1
    assert Path(spec.model_dir).is_absolute()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "float32"}, {"dtype": "float32"}),
        ({"pp": 3, "pp_partition": (1, 1, 3)}, {"partition": (1, 1, 3)}),
        ({"max_model_len": 100, "page_size": 64}, {"max_model_len": 100, "num_pages": 2 * 32}),
        ({"num_pages": 40}, {"num_pages": 40, "max_model_len": 1024}),
        ({"num_pages": 10, "page_size": 8}, {"num_pages": 10, "max_model_len": 80}),
        ({"threads_per_rank": 3}, {"threads_per_rank": 3}),
        ({"chunked_prefill_size": 128}, {"chunked_prefill_size": 128, "max_prefill_tokens": 128}),
        ({"max_prefill_tokens": 2048}, {"chunked_prefill_size": 512, "max_prefill_tokens": 2048}),
        ({"tp": 2}, {"all_reduce": "auto", "all_reduce_codec": "none", "exact": True}),
        ({"exact": "on"}, {"exact": True}),
        ({"exact": "off"}, {"exact": False}),
        (
            {"tp": 2, "all_reduce": "quick", "all_reduce_codec": "int8"},
            {"all_reduce": "quick", "all_reduce_codec": "int8"},
        ),
    ],
    ids=str,
)
def test_what_the_user_says_holds(folder: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = resolve_launch(options(folder, **changes))
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 3}, "tp 3 does not divide num_attention_heads 4"),
        ({"tp": 8}, "tp 8 does not divide num_attention_heads 4"),
        ({"all_reduce_codec": "int8"}, "all_reduce_codec int8: with tp 1 nothing is reduced"),
        ({"pp": 6}, "pp 6 exceeds the model's 5 layers"),
        ({"pp": 2, "pp_partition": (2, 2)}, r"\[2, 2\] sums to 4, but the model has 5 layers"),
        ({"max_model_len": 2000}, "max_model_len 2000 exceeds the model's 1024 positions"),
        ({"max_model_len": 1000, "num_pages": 3}, "3 KV pages of 64 tokens cannot hold one request of 1000 tokens"),
        (
            {"num_pages": 2**31 - 1},
            r"2147483647 KV pages of 64 tokens need [\d.]+ GiB with weights and states of rank 0 ",
        ),
        ({"num_pages": 1, "page_size": 1}, "1 KV pages of 1 tokens hold no prompt and answer"),
        (
            {"exact": "on", "tp": 2, "all_reduce_codec": "int8"},
            "exact on: all_reduce_codec int8: which sums are coded depends on the rows of a step",
        ),
    ],
    ids=str,
)
def test_layouts_and_lengths_that_cannot_be(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_launch(options(folder, **changes))


def test_which_layouts_are_exact(folder: Path) -> None:
    layouts: list[dict[str, Any]] = [{}, {"tp": 4, "pp": 2}, {"tp": 2, "all_reduce_codec": "int8"}, {"exact": "off"}]
    assert [is_exact(resolve_launch(options(folder, **layout))) for layout in layouts] == [True, True, False, False]
    assert inexact_because("cpu", 8, AllReduceOptions()) == "tp 8: sums are cut for 1, 2 or 4 tensor ranks"


def test_graphs_of_prompts_are_for_gpus_and_not_exact(folder: Path) -> None:
    model, wanted = read_config(folder), options(folder, prompt_graphs="on")
    assert not resolve_launch(options(folder)).prompt_graphs
    check_on_device(wanted, model, "float32", "cuda")
    with pytest.raises(ValueError, match=r"^prompt_graphs: it is for GPUs$"):
        check_on_device(wanted, model, "float32", "cpu")
    with pytest.raises(ValueError, match=r"^prompt_graphs: with --exact on prompts have kernels of their own$"):
        check_on_device(replace(wanted, exact="on"), model, "float32", "cuda")


def test_which_layouts_are_exact_on_a_gpu(folder: Path) -> None:
    model, wanted = read_config(folder), options(folder, exact="on")
    model = replace(model, moe_intermediate_size=64, shared_expert_intermediate_size=128, linear_num_key_heads=8)
    for tp in (1, 2):
        check_exact(replace(wanted, tp=tp), replace(model, linear_num_value_heads=8), "cuda")
    for changes, options_of, said in (
        ({"linear_num_value_heads": 6}, {}, "linear_num_value_heads 6 at tp 1: 6 a rank or shard, a multiple of 4 is"),
        ({"moe_intermediate_size": 72}, {}, "moe_intermediate_size 72 at tp 1: 18 a rank or shard, a multiple of 16"),
        ({"linear_num_key_heads": 2}, {"tp": 2}, "linear_num_key_heads 2 at tp 2: 1 a rank or shard, a multiple of 4"),
        ({}, {"tp": 4}, "exact on: tp 4 with all_reduce auto: torch's adds in orders of its own; quick does not"),
        ({}, {"tp": 8}, "exact on: tp 8: sums are cut for 1, 2 or 4 tensor ranks"),
    ):
        with pytest.raises(ValueError, match=said):
            check_exact(
                replace(wanted, **options_of), replace(model, **({"linear_num_value_heads": 8} | changes)), "cuda"
            )
    check_exact(replace(wanted, exact="auto", tp=2), model, "cuda")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"head_dim": 2048}, "head_dim 2048: at most 1024; give --exact off"),
        ({"linear_conv_kernel_dim": 17}, "linear_conv_kernel_dim 17: 2 to 16; give --exact off"),
    ],
)
def test_sizes_that_no_cpu_kernel_takes(tmp_path: Path, shape: dict[str, int], said: str) -> None:
    config = hub_config(random_text_config(num_hidden_layers=2, **shape), "text", "bfloat16", tied=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        resolve_launch(options(tmp_path, load_format="dummy"))


def test_no_such_model() -> None:
    with pytest.raises(ValueError, match="no/such/folder: no such checkpoint folder"):
        resolve_launch(options(Path("no/such/folder")))


# ------------------------------------------------------------ GPUs


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine whose only GPU has so many bytes."""

    def install(num_bytes: int) -> None:
        monkeypatch.setattr(devices, "probe", lambda: [Gpu("NVIDIA H200", num_bytes, num_bytes)])

    return install


def test_on_a_gpu_the_spec_has_its_device_and_what_fits(folder: Path, one_gpu: Callable[[int], None]) -> None:
    one_gpu(8 * 2**30)
    spec = resolve_launch(options(folder, device="cuda", dtype="float32"))
    assert (spec.device, spec.devices, spec.num_scratch, spec.scratch_page) == ("cuda", (0,), 1, spec.num_pages)
    assert (spec.max_running_requests, spec.chunked_prefill_size, spec.max_prefill_tokens) == (256, 2048, 8192)
    assert spec.prompt_graphs
    assert not resolve_launch(options(folder, device="cuda", dtype="float32", prompt_graphs="off")).prompt_graphs


def test_too_small_a_gpu_is_refused_with_the_bytes_and_what_would_fit(
    folder: Path, one_gpu: Callable[[int], None]
) -> None:
    weights = sum(plan.num_bytes for plan in plan_all_ranks(read_config(folder), 1, (5,), "float32"))
    one_gpu(int(0.8 * weights))
    said = r"rank 0 \(stage 0, tp 0\) needs .* GiB .* NVIDIA H200, .*; would fit on such GPUs: --pp 2, --tp 2"
    with pytest.raises(ValueError, match=said):
        resolve_launch(options(folder, device="cuda", dtype="float32", prefix_cache_mib=0))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"head_dim": 40}, "head_dim 40: on a GPU a power of two of at least 16"),
        ({"linear_key_head_dim": 8}, "linear_key_head_dim 8: on a GPU a power of two of at least 16"),
        ({"moe_intermediate_size": 20}, r"moe_intermediate_size at tp 1 20: on a GPU a multiple of 8 \(bfloat16\)"),
        ({"linear_conv_kernel_dim": 5}, "linear_conv_kernel_dim 5: on a GPU at most 4"),
    ],
)
def test_sizes_that_no_kernel_takes(
    tmp_path: Path, one_gpu: Callable[[int], None], shape: dict[str, int], said: str
) -> None:
    one_gpu(8 * 2**30)
    config = hub_config(random_text_config(num_hidden_layers=2, **shape), "text", "bfloat16", tied=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=said):
        resolve_launch(options(tmp_path, device="cuda", load_format="dummy"))
