"""The device of a rank: its operations and its steps. Compiled modules and kernels are imported where they are used."""

from typing import TYPE_CHECKING

import torch

from splitrank.comm.collectives import Collectives
from splitrank.comm.selection import AllReduceOptions
from splitrank.models.cache import StageCache
from splitrank.models.config import ModelConfig
from splitrank.models.exactness import inexact_because
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.ops.operations import Operations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.sharding import TensorShard
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.cores import describe_cores, own_cores
from splitrank.serving.rank.cpu_steps import CpuSteps
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.steps import Steps

if TYPE_CHECKING:
    from splitrank.serving.rank.kernel_compiler import KernelCompiler


def exactness(spec: LaunchSpec, ops: Operations, rank: int) -> str:
    """What a rank says at start: its sums' order; on a CPU the instructions and its threads' cores, too."""
    if spec.device != "cpu":
        return "  exact" if spec.exact else ""
    if not spec.exact:
        return "  not exact (--exact off)"
    from splitrank.models.ops.cpu.exact import ExactOperations

    assert isinstance(ops, ExactOperations)
    reason = inexact_because("cpu", spec.tp_size, AllReduceOptions(spec.all_reduce, spec.all_reduce_codec))
    instructions = ops.native.instruction_set
    order = f"not exact ({reason}; {instructions})" if reason else f"exact ({instructions})"
    return f"  {order}  {describe_cores(own_cores(spec, rank))}"


def pin_threads(spec: LaunchSpec, ops: Operations, rank: int) -> None:
    """Each of the rank's own threads on its core, this one among them: threads that it starts later inherit it."""
    if cores := own_cores(spec, rank):
        from splitrank.models.ops.cpu.exact import ExactOperations

        assert isinstance(ops, ExactOperations)
        ops.native.pin(cores)


def make_operations(spec: LaunchSpec, rank: int, config: ModelConfig, shard: TensorShard) -> Operations:
    """The operations of the rank's device. ``ValueError`` if it is not there."""
    if spec.device == "cpu" and not spec.exact:
        return CpuOperations()
    if spec.device == "cpu":
        from splitrank.models.ops.cpu.exact import ExactOperations

        return ExactOperations(shard, spec.threads_per_rank)
    from splitrank.serving.rank.gpu_device import make_gpu_operations

    return make_gpu_operations(spec, rank, config, shard)


def start_compiling(spec: LaunchSpec, rank: int, device: torch.device) -> "KernelCompiler | None":
    """The compiler of the kernels that ``make_steps`` needs, where they are compiled on the spot."""
    if spec.device == "cpu":
        return None
    from splitrank.serving.rank.gpu_device import start_compiling

    return start_compiling(spec, rank, device)


def make_steps(
    spec: LaunchSpec,
    model: Stage,
    cache: StageCache,
    table: RequestTable,
    collectives: Collectives,
    waits_on_device: bool,
) -> Steps:
    """How this rank computes its steps. ``waits_on_device``: where it waits for other ranks, if there are any."""
    if spec.device == "cpu":
        return _make_cpu_steps(spec, model, cache, table, collectives)
    from splitrank.serving.rank.gpu_device import make_gpu_steps

    return make_gpu_steps(spec, model, cache, table, collectives, waits_on_device)


def _make_cpu_steps(
    spec: LaunchSpec, model: Stage, cache: StageCache, table: RequestTable, collectives: Collectives
) -> CpuSteps:
    if not spec.exact:
        return CpuSteps(model, cache, table, collectives, spec.digests)
    from splitrank.models.ops.cpu.exact import ExactOperations
    from splitrank.models.ops.cpu.whole_stage import WholeStage

    assert isinstance(model.ops, ExactOperations)
    # In one call where nobody has to be heard or to watch between two layers: neither tensor ranks nor a trace.
    whole_stage = WholeStage(model, cache) if spec.tp_size == 1 and not spec.trace_dir else None
    return CpuSteps(model, cache, table, collectives, spec.digests, whole_stage, model.ops.greedy)
