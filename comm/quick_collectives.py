"""The quick backend of ``Collectives``. A measured table says by size: tagged, one-shot, two-shot, or torch."""

from dataclasses import replace
from math import prod

import torch

from splitrank.comm.collectives import TorchCollectives
from splitrank.comm.quick_reduce import ALIGNMENT, DTYPE_CODES, QuickAllReduce
from splitrank.comm.selection import NO_LIMIT, Selection, Thresholds


class QuickCollectives:
    """``codec`` is for messages above the table's limit; small ones and gathered columns have full precision."""

    def __init__(self, quick: QuickAllReduce, torch_: TorchCollectives, selection: Selection, codec: str) -> None:
        self.rank, self.size = quick.rank, quick.world_size
        self.quick, self.torch, self._codec = quick, torch_, codec
        self._thresholds: dict[torch.dtype, Thresholds] = {
            dtype: _within(quick, dtype, codec, selection.thresholds[dtype.itemsize]) for dtype in DTYPE_CODES
        }
        # Torch's gloo, which may sum the largest messages, waits on the host.
        self.capturable = all(limits.two_shot_bytes == NO_LIMIT for limits in self._thresholds.values())

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._sum(tensor, self._codec)

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        shape = (*tensor.shape[:-1], sum(widths))
        limits = self._thresholds.get(tensor.dtype)
        if limits is not None and prod(shape) * tensor.itemsize > limits.two_shot_bytes:
            return self.torch.all_gather_columns(tensor, widths)
        # A sum of tensors that are -0.0 except for the rank's own columns: -0.0 + x is x for every x, so no bit changes
        # (only a signalling NaN would become a quiet one).
        gathered = torch.full(shape, -0.0, dtype=tensor.dtype, device=tensor.device)
        start = sum(widths[: self.rank])
        gathered[..., start : start + widths[self.rank]] = tensor
        return self._sum(gathered, "none")

    def check(self) -> None:
        """Raises if a call failed on the device; see ``QuickAllReduce.check``."""
        self.quick.check()

    def close(self) -> None:
        self.quick.close()

    def _sum(self, tensor: torch.Tensor, codec: str) -> torch.Tensor:
        limits = self._thresholds.get(tensor.dtype)
        if limits is None:
            raise ValueError(f"a sum over ranks takes float32, bfloat16 and float16, not {tensor.dtype}")
        num_bytes = tensor.nbytes
        if num_bytes > limits.two_shot_bytes:
            return self.torch.all_reduce_(tensor)
        algorithm, codec = limits.way(num_bytes, codec, self.size)
        # The kernels do not take every view; a copy is summed instead.
        fit = tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0
        summed = tensor if fit else tensor.clone(memory_format=torch.contiguous_format)
        self.quick.all_reduce(summed, None, algorithm, codec)
        return tensor if fit else tensor.copy_(summed)


def _within(quick: QuickAllReduce, dtype: torch.dtype, codec: str, limits: Thresholds) -> Thresholds:
    """The table's limits, reduced for this accelerator: fewer multiprocessors take smaller tagged messages only."""
    tagged = min(limits.tagged_bytes, quick.tagged_bytes(dtype, "none"))
    coded = min(limits.coded_tagged_bytes, quick.tagged_bytes(dtype, codec))
    return replace(limits, tagged_bytes=tagged, coded_tagged_bytes=coded)
