"""The device of a rank: its operations and its steps. What belongs to a GPU is imported only where one is used."""

import torch

from splitrank.comm.collectives import Collectives
from splitrank.models.cache import StageCache
from splitrank.models.config import ModelConfig
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.ops.operations import Operations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.sharding import TensorShard
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.cpu_steps import CpuSteps
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.steps import Steps


def make_operations(spec: LaunchSpec, rank: int, config: ModelConfig, shard: TensorShard) -> Operations:
    """Of the rank's device, which becomes the process's current one. ``ValueError`` if it is not there."""
    if spec.device == "cpu":
        return CpuOperations()
    from splitrank.models.ops.gpu.launch import INTERPRETED
    from splitrank.models.ops.gpu.operations import GpuOperations

    device = torch.device("cpu") if INTERPRETED else _cuda_device(spec, rank)
    return GpuOperations(device, LayerShapes.of(config, shard), spec.max_running_requests, spec.tp_size > 1)


def _cuda_device(spec: LaunchSpec, rank: int) -> torch.device:
    number = spec.devices[rank]
    if not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no GPU (a build without CUDA or ROCm, or a driver that is too old)")
    if number >= torch.cuda.device_count():
        raise ValueError(f"device {number} does not exist: torch finds {torch.cuda.device_count()}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def make_steps(
    spec: LaunchSpec,
    model: Stage,
    cache: StageCache,
    table: RequestTable,
    collectives: Collectives,
    is_sampling_rank: bool,
) -> Steps:
    """How this rank computes its steps; on a GPU its graphs are captured here."""
    if spec.device == "cpu":
        return CpuSteps(model, cache, table, collectives)
    from splitrank.models.ops.gpu.launch import INTERPRETED
    from splitrank.serving.rank.gpu_steps import DeviceSampler, GpuSteps

    rows = spec.max_running_requests
    sampler = DeviceSampler(table, spec.vocab_size, rows) if is_sampling_rank else None
    steps = GpuSteps(model, cache, table, collectives, sampler, overlaps=spec.world_size == 1)
    # The all-reduce is not captured: its handshake counts calls on the host.
    if spec.tp_size == 1 and not INTERPRETED:
        with torch.inference_mode():
            steps.capture(rows, None if model.stage.is_first else _empty_states(model, rows))
    return steps


def _empty_states(model: Stage, rows: int) -> HiddenStates:
    shape = (rows, model.config.hidden_size)
    return HiddenStates(*(model.ops.zeros(*shape, dtype=model.dtype) for _ in HiddenStates._fields))
