"""What a rank needs of its GPU: operations, compiled kernels, steps with their graphs. Imported where a GPU is used."""

import torch

from splitrank.comm.collectives import Collectives
from splitrank.models.cache import StageCache
from splitrank.models.config import ModelConfig
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.ops.gpu.exact import ExactGpuOperations
from splitrank.models.ops.gpu.launch import INTERPRETED, gpu_target
from splitrank.models.ops.gpu.operations import GpuOperations, gpu_name
from splitrank.models.ops.gpu.tiles import load_tiles
from splitrank.models.qwen3_5 import Stage
from splitrank.models.sharding import TensorShard
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.device_reserve import reserve_memory
from splitrank.serving.rank.gpu_steps import DeviceSampler, GpuSteps
from splitrank.serving.rank.kernel_compiler import KernelCompiler
from splitrank.serving.rank.planned_launches import longest_prompt, short_prompts
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.warm_up import run_prompt, states_before

_FEW_ROWS = 128


def make_gpu_operations(spec: LaunchSpec, rank: int, config: ModelConfig, shard: TensorShard) -> GpuOperations:
    """On the rank's device, which becomes the process's current one. ``ValueError`` if it is not there."""
    device = torch.device("cpu") if INTERPRETED else _cuda_device(spec, rank)
    tiles = load_tiles(gpu_name(device), exact=spec.exact, dtype=spec.dtype)
    make = ExactGpuOperations if spec.exact else GpuOperations
    return make(device, tiles, LayerShapes.of(config, shard), spec.max_decodes, spec.tp_size > 1)


def _cuda_device(spec: LaunchSpec, rank: int) -> torch.device:
    number = spec.devices[rank]
    if not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no GPU (a build without CUDA or ROCm, or a driver that is too old)")
    if number >= torch.cuda.device_count():
        raise ValueError(f"device {number} does not exist: torch finds {torch.cuda.device_count()}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def start_compiling(spec: LaunchSpec, rank: int, device: torch.device) -> KernelCompiler | None:
    """Compiles meanwhile what ``make_gpu_steps`` needs. Interpreted kernels are not compiled."""
    return None if INTERPRETED else KernelCompiler(spec, rank, gpu_name(device), gpu_target())


def make_gpu_steps(
    spec: LaunchSpec,
    model: Stage,
    cache: StageCache,
    table: RequestTable,
    collectives: Collectives,
    overlaps: bool,
) -> GpuSteps:
    """Captures the graphs, and runs a prompt, so that the first user does not wait until kernels are loaded."""
    rows = spec.max_decodes
    sampler = DeviceSampler(table, spec.vocab_size, spec.max_running_requests) if model.stage.is_last else None
    steps = GpuSteps(model, cache, table, collectives, sampler, overlaps, spec.digests)
    if INTERPRETED:
        return steps
    longest = longest_prompt(spec)
    inputs = states_before(model, max(rows, longest))
    if collectives.capturable:
        assert isinstance(model.ops, GpuOperations)
        with torch.inference_mode():
            steps.capture(rows, states_before(model, rows))
            if sizes := short_prompts(spec, table, model.ops.tiles):
                steps.capture_prompts(sizes, states_before(model, max(sizes)))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for tokens in (min(_FEW_ROWS, longest), longest):  # the kernels of few rows, and those of many
        run_prompt(steps, table, inputs, tokens, page=spec.num_pages)
    torch.cuda.synchronize()
    peak_bytes = torch.cuda.max_memory_allocated() - before
    reserve_memory(spec, model.ops.device, longest, peak_bytes, model.stage.is_last)
    return steps
