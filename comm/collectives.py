"""The contract of the tensor-parallel collectives, and two of its backends: one rank, and torch's gloo.

Every row-parallel layer ends in ``all_reduce_``; nothing else in the model sums over ranks. A backend is chosen where
the rank starts and passed as an argument; the fast one (shared memory, IPC) is in ``quick_collectives.py``.
"""

from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from splitrank.comm.waiting import wait


class Collectives(Protocol):
    """Sum and gather over the tensor ranks of one stage. All ranks make the calls in the same order."""

    rank: int
    size: int
    capturable: bool  # whether its calls may be captured in a CUDA graph: they only enqueue work on the device

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums ``tensor`` over the ranks in place and returns it; the result has the same bits on every rank."""
        ...

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        """Concatenates [rows, widths[rank]] of all ranks along the last dim: [rows, sum(widths)] on every rank."""
        ...

    def check(self) -> None:
        """Raises ``CommunicationError`` if a call failed on the device. Called before a step's result is sent."""
        ...

    def close(self) -> None:
        """Frees what the backend holds. All ranks call it at about the same time; safe when peers are gone."""
        ...


class SingleRank:
    """The identity: a stage of one tensor rank."""

    rank, size, capturable = 0, 1, True

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        return tensor

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


class TorchCollectives:
    """The reference backend: torch.distributed on the group of one stage.

    ``tree``: sums of more than two ranks are added along the tree of the quick all-reduce, ((0+1)+(2+3)), from gathered
    tensors; gloo has an order of its own.
    """

    capturable = False  # the host waits for gloo

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int, timeout_s: float, tree: bool = False) -> None:
        self.rank, self.size, self._tree = rank, size, tree
        self._group, self._timeout = group, timedelta(seconds=timeout_s)

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._tree and self.size > 2:
            return tensor.copy_(self._tree_sum(tensor))
        summed = tensor.contiguous()  # gloo would sum the gaps of a view as well
        self._wait(dist.all_reduce(summed, group=self._group, async_op=True), "all-reduce")
        return tensor if summed is tensor else tensor.copy_(summed)

    def _tree_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty(tensor.shape, dtype=tensor.dtype) for _ in range(self.size)]
        work = dist.all_gather(parts, tensor.contiguous(), group=self._group, async_op=True)
        self._wait(work, "all-reduce")
        sums = [part.float() for part in parts]
        while len(sums) > 1:
            pairs = [torch.add(*sums[index : index + 2]) for index in range(0, len(sums) - 1, 2)]
            sums = pairs + sums[2 * len(pairs) :]
        return sums[0]

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        # gloo gathers equal shapes only, so the narrower shards are padded.
        padded = torch.nn.functional.pad(tensor, (0, max(widths) - tensor.shape[-1])).contiguous()
        shards = [torch.empty_like(padded) for _ in widths]
        self._wait(dist.all_gather(shards, padded, group=self._group, async_op=True), "all-gather")
        return torch.cat([shard[..., :width] for shard, width in zip(shards, widths, strict=True)], dim=-1)

    def check(self) -> None:
        """Nothing to do: every call has waited for its end."""

    def close(self) -> None:
        """Nothing to do: the mesh owns the group."""

    def _wait(self, work: dist.Work | None, name: str) -> None:
        wait(work, self._timeout, f"tensor rank {self.rank} of {self.size}: {name} failed")
