"""All ranks of a layout in one process and on one device, in place of a worker's only stage.

Tensor ranks are threads that compute in turns: who waits for the others' parts lets the next one go on.
"""

from collections.abc import Callable
from threading import Barrier, Lock, Thread
from typing import Any

import torch

from splitrank.models.cache import StageCache
from splitrank.models.dummy_weights import fill_dummy
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layer_shapes import LayerShapes
from splitrank.models.layers.parameter import prepare
from splitrank.models.loader import load_weights
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.operations import GpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.sharding import TensorShard, equal_partition, stage_slice
from splitrank.models.weight_plan import plan_weights
from splitrank.serving.rank.worker import Worker

TIMEOUT_S = 120


class Turns:
    """What the tensor ranks share."""

    def __init__(self, size: int) -> None:
        self.size, self.parts = size, [torch.empty(0)] * size
        self._turn, self._barrier = Lock(), Barrier(size, timeout=TIMEOUT_S)

    def wait(self) -> None:
        """Until all ranks are here."""
        self._turn.release()
        self._barrier.wait()
        self._turn.acquire()

    def run(self, compute: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """``compute`` of every rank."""
        results: list[torch.Tensor] = [torch.empty(0)] * self.size

        def run_rank(rank: int) -> None:
            with self._turn, torch.inference_mode():
                results[rank] = compute(rank)

        threads = [Thread(target=run_rank, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert all(len(result) for result in results), "a tensor rank has failed"
        return results


class TurnCollectives:
    """``Collectives`` of one of these ranks: sums in float32 along ((0 + 1) + (2 + 3)), as the quick all-reduce's."""

    capturable = False

    def __init__(self, rank: int, turns: Turns) -> None:
        self.rank, self.size, self._turns = rank, turns.size, turns

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        sums = [part.float() for part in self._gather(tensor)]
        while len(sums) > 1:
            sums = [left + right for left, right in zip(sums[::2], sums[1::2], strict=True)]
        return tensor.copy_(sums[0])

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        return torch.cat(self._gather(tensor), dim=-1)

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._turns.parts[self.rank] = tensor.clone()
        self._turns.wait()
        parts = list(self._turns.parts)
        self._turns.wait()
        return parts

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


class LayoutInProcess:
    """Called as a stage of one rank is. ``worker`` says model, dtype and sizes; its own stage is left as it is."""

    def __init__(self, worker: Worker, pp: int, tp: int) -> None:
        self._turns = Turns(tp)
        self._ranks = [self._make_stages(worker, pp, TensorShard(rank, tp)) for rank in range(tp)]
        self._collectives = [TurnCollectives(rank, self._turns) for rank in range(tp)]

    @staticmethod
    def _make_stages(worker: Worker, pp: int, shard: TensorShard) -> list[tuple[Stage, StageCache]]:
        config, spec, own = worker.config, worker.spec, worker.ops
        assert isinstance(own, GpuOperations)
        shapes = LayerShapes.of(config, shard)
        ops = type(own)(own.device, own.tiles, shapes, spec.max_decodes, shard.size > 1)
        partition, stages = equal_partition(config.num_hidden_layers, pp), []
        for rank in range(pp):
            part = stage_slice(rank, pp, partition)
            stage = Stage(config, part, partition, shard, worker.dtype, ops)
            if spec.load_format == "dummy":
                fill_dummy(stage, plan_weights(config, part, shard, spec.dtype, None), config)
            else:
                load_weights(stage, plan_weights(config, part, shard, spec.dtype, worker.checkpoint), worker.checkpoint)
            prepare(stage, ops)
            sizes = spec.num_pages + 1, spec.page_size, spec.max_running_requests + 1
            stages.append((stage, StageCache(config, part, shard, worker.dtype, *sizes, ops)))
        return stages

    def __call__(self, batch: GpuBatch, states: HiddenStates | None, cache: Any, collectives: Any) -> torch.Tensor:
        logits = self._turns.run(lambda rank: self._run(rank, batch))
        assert all(torch.equal(own, logits[0]) for own in logits)
        return logits[0]

    def _run(self, rank: int, batch: GpuBatch) -> torch.Tensor:
        states: HiddenStates | torch.Tensor | None = None
        for stage, cache in self._ranks[rank]:
            assert not isinstance(states, torch.Tensor)
            states = stage(batch, states, cache, self._collectives[rank])
        assert isinstance(states, torch.Tensor)
        return states
