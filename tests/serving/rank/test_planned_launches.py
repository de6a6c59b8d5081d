"""Every launch of every step has a variant that was planned before the weights were loaded, on torch's meta device.

A variant that was not planned is compiled when a user's request first needs it, which takes seconds.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.bench_gpu import config_35b
from splitrank.models.config import read_config
from splitrank.models.ops.gpu.launch import Call, noted_launches
from splitrank.models.ops.gpu.tiles import load_tiles
from splitrank.serving.protocol.messages import ChunkPlan, LaunchSpec, NewPages
from splitrank.serving.rank.gpu_steps import GpuSteps
from splitrank.serving.rank.planned_launches import meta_steps, planned_launches, prompt_rows
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.warm_up import run_prompt
from tests.support.stage_runner import admitted, launch_spec

TILES = load_tiles("NVIDIA H200")
EXACT_TILES = load_tiles("NVIDIA H200", exact=True)
# Whom a row's sums do not depend on: who computes a split, how long lists of pairs and tiles are.
WITHOUT_EFFECT = {"PARTS", "CHUNK", "BLOCK_ROWS", "BLOCK_PAIRS", "BLOCK_TILES"}
PAGE, SLOTS, CONTEXT, BUDGET = 64, 256, 4096, 8192
DECODES, CONTEXTS = (0, 1, 2, 3, 5, 8, 17, 64, 100, 191), (1, 60, 64, 65, 300, 1000, 1023, 4000)
PROMPTS, LENGTHS = (1, 2, 3, 17, 50), (1, 2, 15, 16, 63, 64, 65, 129, 500, 2048, 4000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real widths: nothing is allocated."""
    folder = tmp_path_factory.mktemp("planned")
    (folder / "config.json").write_text(json.dumps(config_35b()))
    return folder


def spec_of(folder: Path, **layout: Any) -> LaunchSpec:
    return launch_spec(
        folder, folder, device="cuda", devices=(0,) * 2, dtype="bfloat16", max_running_requests=SLOTS, page_size=PAGE,
        max_model_len=CONTEXT, max_prefill_tokens=BUDGET, chunked_prefill_size=2048, **layout,
    )  # fmt: skip


def fill(table: RequestTable, slot: int, length: int, context: int = 0) -> None:
    table.admit(admitted(slot, slot, [0] * (length + context)), None)
    table.add_pages(NewPages(slot, [0] * -(-(length + context) // PAGE)))
    table.set_length(slot, context)


def run_any_step(steps: GpuSteps, table: RequestTable, rng: random.Random) -> None:
    """Some decode rows of one context, and prompts up to the budget, of which some are sampled."""
    decodes, context = list(range(rng.choice(DECODES))), rng.choice(CONTEXTS)
    for slot in decodes:
        fill(table, slot, 1, context)
    chunks: list[ChunkPlan] = []
    for slot in range(len(decodes), len(decodes) + rng.choice(PROMPTS)):
        length = rng.choice(LENGTHS)
        if sum(chunk.num_tokens for chunk in chunks) + length <= BUDGET:
            fill(table, slot, length)
            chunks.append(ChunkPlan(slot, length, sample=rng.random() < 0.7))
    steps.forward(steps.make_batch(decodes, chunks, []), None)
    for slot in list(table.rows):
        table.take(slot)


@pytest.mark.parametrize("exact", [False, True], ids=["not exact", "exact"])
@torch.inference_mode()
def test_any_step_launches_what_was_planned(folder: Path, exact: bool) -> None:
    tiles = EXACT_TILES if exact else TILES
    spec, config, rng = spec_of(folder, exact=exact), read_config(folder), random.Random(0)
    planned = {call.variant for call in planned_launches(spec, 0, config, tiles)}
    steps, table, _ = meta_steps(spec, 0, config, tiles)
    with noted_launches() as calls:
        for _ in range(40):
            run_any_step(steps, table, rng)
    assert {call.name for call in calls if call.variant not in planned} == set()


@pytest.mark.parametrize(
    ("layout", "rank", "has", "lacks"),
    [
        ({"pp_size": 2, "partition": (20, 20)}, 0, {"embed", "sum_parts"}, {"sample_candidates", "argmax_dot"}),
        ({"pp_size": 2, "partition": (20, 20)}, 1, {"sample_candidates", "argmax_dot"}, {"embed", "sum_parts"}),
        ({"tp_size": 2}, 0, {"embed", "sum_parts", "sample_candidates"}, set()),
        ({"tp_size": 2}, 1, {"embed", "sum_parts", "sample_candidates", "keep_tokens"}, set()),  # all ranks draw
    ],
)
def test_a_rank_plans_its_own_part(
    folder: Path, layout: dict[str, Any], rank: int, has: set[str], lacks: set[str]
) -> None:
    calls = planned_launches(spec_of(folder, **layout), rank, read_config(folder), TILES)
    names = {call.name for call in calls}
    assert has <= names
    assert not lacks & names
    assert len({call.variant for call in calls}) == len(calls)


def sums_of(calls: list[Call]) -> list[tuple[str, Any]]:
    """What decides the order of a row's sums, launch by launch."""
    found = []
    for call in calls:
        constants = {name: value for name, value in call.arguments.items() if name.isupper()}
        kept = {name: value for name, value in constants.items() if name not in WITHOUT_EFFECT}
        found.append((call.name, (call.tile.num_warps, call.tile.exact, kept)))
    return found


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "not exact"])
@torch.inference_mode()
def test_any_number_of_rows_has_one_order_of_sums_if_it_is_exact_and_else_not(folder: Path, exact: bool) -> None:
    """Decode steps of 1 to 256 rows, and prompts of 1 to 8,192 tokens, launch by launch."""
    tiles = EXACT_TILES if exact else TILES
    steps, table, inputs = meta_steps(spec_of(folder, exact=exact), 0, read_config(folder), tiles)
    decodes, prompts = [], []
    for size in (1, 2, 7, 64, 129, 256):
        with noted_launches() as calls:
            steps.run_decode(size, None)
        decodes.append(sums_of(calls))
    for size in (1, 2, 100, 257, 8192):
        with noted_launches() as calls:
            run_prompt(steps, table, inputs, size, page=0)
        prompts.append(sums_of(calls))
    assert all(found == decodes[0] for found in decodes) is exact
    assert all(found == prompts[0] for found in prompts) is exact


def test_prompts_meet_every_tile() -> None:
    rows = prompt_rows(TILES, 4096)
    assert rows == sorted(set(rows))
    assert {3, 4, 8, 16, 64, 127, 128, 256, 4095, 4096} <= set(rows)
    assert max(prompt_rows(TILES, 100)) == 100
