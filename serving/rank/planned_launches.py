"""Every launch that the steps of a rank will make, from a run on torch's meta device: one layer of each kind, no GPU.

A kernel is compiled once for each variant (``Call.variant``). Which variants there are follows from the model's sizes,
the table of tiles and the numbers of rows, so they are known before the weights are loaded.
"""

from dataclasses import replace

import torch

from splitrank.comm.position import mesh_position
from splitrank.models.cache import StageCache
from splitrank.models.config import ModelConfig
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.parameter import prepare
from splitrank.models.ops.gpu.exact import ExactGpuOperations
from splitrank.models.ops.gpu.launch import Call, noted_launches
from splitrank.models.ops.gpu.operations import GpuOperations
from splitrank.models.ops.gpu.routing import most_tiles
from splitrank.models.ops.gpu.tiles import TileTable
from splitrank.models.qwen3_5 import Stage
from splitrank.models.rounding import next_power_of_2, pages_needed
from splitrank.models.sharding import StageSlice, TensorShard
from splitrank.models.torch_dtype import torch_dtype
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.decode_graphs import ladder
from splitrank.serving.rank.gpu_steps import DeviceSampler, GpuSteps
from splitrank.serving.rank.prompt_graphs import graph_sizes
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.warm_up import run_prompt, states_before

META = torch.device("meta")


class ShapesOnly:
    """Collectives of ``size`` ranks on tensors without values."""

    capturable = False

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        return tensor.new_empty(*tensor.shape[:-1], sum(widths))

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


@torch.inference_mode()
def planned_launches(spec: LaunchSpec, rank: int, config: ModelConfig, tiles: TileTable) -> list[Call]:
    """One launch of each variant, those of decode steps first."""
    steps, table, inputs = meta_steps(spec, rank, config, tiles)
    with noted_launches() as calls:
        for size in reversed(decode_rows(spec, config, tiles)):
            steps.run_decode(size, None if inputs is None else inputs.first_rows(size))
        for size in short_prompts(spec, table, tiles):
            steps.run_short_prompt(size, None if inputs is None else inputs.first_rows(size))
        for rows in prompt_rows(tiles, longest_prompt(spec)):
            run_prompt(steps, table, inputs, rows, page=0)
    return list({call.variant: call for call in calls}.values())


def decode_rows(spec: LaunchSpec, config: ModelConfig, tiles: TileTable) -> list[int]:
    """Sizes of the graphs; in the exact mode, which computes decode rows apart from prompts, also numbers of rows
    beside prompts: one for each size of the experts' lists."""
    sizes = set(ladder(spec.max_decodes))
    if spec.exact:
        kinds: dict[tuple[int, int], int] = {}
        for rows in range(1, spec.max_decodes + 1):
            block_t = tiles.tile("route", rows)["t"]
            length = most_tiles(rows, config.num_experts, config.num_experts_per_tok, block_t)
            kinds[next_power_of_2(rows), next_power_of_2(length)] = rows
        sizes |= set(kinds.values())
    return sorted(sizes)


def short_prompts(spec: LaunchSpec, table: RequestTable, tiles: TileTable) -> tuple[int, ...]:
    """Sizes of the graphs of short prompts: the kernels of few rows, which know of padding."""
    if not spec.prompt_graphs:
        return ()
    return graph_sizes(table, min(spec.max_prefill_tokens, tiles.ranges["in_proj"][-1][0]))


def longest_prompt(spec: LaunchSpec) -> int:
    """Tokens of one prompt in a step."""
    return min(spec.max_prefill_tokens, spec.max_model_len)


def prompt_rows(tiles: TileTable, most: int) -> list[int]:
    """Lengths of prompts that meet every tile up to ``most`` rows: each range's last number of rows, which 16 divides,
    and one less. Kernels differ by whether 16 divides a number, and for 1."""
    ends = {min(up_to, most) for ranges in tiles.ranges.values() for up_to, _ in ranges}
    return sorted({rows for end in ends | {most} for rows in (end, end - 1) if rows > 1})


def meta_steps(
    spec: LaunchSpec, rank: int, config: ModelConfig, tiles: TileTable
) -> tuple[GpuSteps, RequestTable, HiddenStates | None]:
    """A rank's steps without values, on a stage with one layer of each kind; and what the stage before would send."""
    position = mesh_position(rank, spec.pp_size, spec.tp_size)
    kinds = tuple(dict.fromkeys(config.layer_types))
    config = replace(config, num_hidden_layers=len(kinds) * spec.pp_size, layer_types=kinds * spec.pp_size)
    partition = (len(kinds),) * spec.pp_size
    first = position.pp_rank * len(kinds)
    stage = StageSlice(position.pp_rank, spec.pp_size, first, first + len(kinds))
    shard, dtype = TensorShard(position.tp_rank, spec.tp_size), torch_dtype(spec.dtype)
    rows, max_pages = spec.max_running_requests, pages_needed(spec.max_model_len, spec.page_size)
    make = ExactGpuOperations if spec.exact else GpuOperations
    ops = make(META, tiles, LayerShapes.of(config, shard), spec.max_decodes, spec.tp_size > 1)
    model = Stage(config, stage, partition, shard, dtype, ops)
    prepare(model, ops)
    num_pages = 1  # any number: no kernel depends on it
    cache = StageCache(config, stage, shard, dtype, num_pages, spec.page_size, rows + spec.num_scratch, ops)
    table = RequestTable(rows, max_pages, spec.page_size, META, scratch_page=0)
    sampler = DeviceSampler(table, spec.vocab_size, rows) if stage.is_last else None
    steps = GpuSteps(model, cache, table, ShapesOnly(position.tp_rank, spec.tp_size), sampler, overlaps=False)
    most = max(spec.max_prefill_tokens, rows)
    return steps, table, states_before(model, most)
