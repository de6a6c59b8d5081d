"""Fills a rank's parameters from the byte ranges that its weight plan names, and audits the copies.

Plain ``pread`` through one bounded buffer. With a memory map, the file's pages would count as memory of this process;
to read whole tensors would double the peak of memory for fused experts.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from splitrank.models.checkpoint import Checkpoint
from splitrank.models.errors import CheckpointError
from splitrank.models.load_audit import Copied, audit_copies
from splitrank.models.safetensors_header import TensorEntry
from splitrank.models.torch_dtype import torch_dtype
from splitrank.models.weight_plan import AuditError, LocalParameter, Runs, WeightPlan, runs_of

BLOCK_BYTES = 8 * 2**20
# The runs of a column slice are read one by one if the gap between two runs is at least this long; else together with
# the gaps. One more read costs as much as copying 4 to 6 KiB from the page cache (measured, tp 2 to 8).
GAP_BYTES = 6 * 2**10


def load_weights(
    module: torch.nn.Module,
    plan: WeightPlan,
    checkpoint: Checkpoint,
    on_progress: Callable[[int], object] = lambda num_bytes: None,
) -> int:
    """Reads every piece of ``plan`` into ``module``'s parameters, which must be exactly those of the plan.

    Returns the bytes written to parameters, counted where they are copied.
    ``on_progress`` gets the bytes of each copied block, in the local dtype. Raises ``CheckpointError`` for a file that
    cannot be read or ends early, and ``AuditError`` if a parameter was not written exactly once, from the elements that
    its plan names.
    """
    parameters = dict(module.named_parameters())
    check_allocation(parameters, plan)
    bytes_written = 0
    with _Files(any(parameter.is_cuda for parameter in parameters.values())) as files:
        for planned in plan.parameters:
            parameter = parameters[planned.name]
            copies = []
            for copied in _copy_pieces(planned, parameter, checkpoint, files):
                copies.append(copied)
                num_bytes = (copied.stop - copied.start) * parameter.element_size()
                bytes_written += num_bytes
                on_progress(num_bytes)
            audit_copies(str(plan.position), planned, copies, checkpoint)
    return bytes_written


def check_allocation(parameters: dict[str, torch.nn.Parameter], plan: WeightPlan) -> None:
    """Checks that parameters have the planned names, shapes and dtypes, and storage aligned to 64 bytes."""
    planned = {p.name: (p.shape, p.dtype) for p in plan.parameters}
    allocated = {name: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in parameters.items()}
    for name in sorted(planned.keys() | allocated.keys()):
        if planned.get(name) != allocated.get(name):
            raise AuditError(f"parameter {name}: planned {planned.get(name)}, allocated {allocated.get(name)}")
    for name, parameter in parameters.items():
        # torch's GEMM picks another kernel, with other rounding, for a misaligned operand.
        if parameter.data_ptr() % 64:
            raise AuditError(f"parameter {name}: storage is not aligned to 64 bytes")


def _copy_pieces(
    planned: LocalParameter, parameter: torch.Tensor, checkpoint: Checkpoint, files: "_Files"
) -> Iterator[Copied]:
    """Reads the pieces of one parameter block by block; yields each copy when it is made."""
    flat = parameter.data.view(-1)
    for piece in planned.contiguous_pieces():
        entry = checkpoint.tensors[piece.tensor]
        target = runs_of(planned.shape, piece.target)
        assert target.count == 1, (planned.name, piece)  # a contiguous range of the parameter
        for block in _blocks(runs_of(entry.shape, piece.source), target.first, entry.item_bytes):
            runs, size = block.source, block.source.count * block.source.length
            destination = flat[block.target : block.target + size]
            destination.view(runs.count, runs.length).copy_(files.read(entry, runs))
            start = (destination.data_ptr() - parameter.data_ptr()) // parameter.element_size()
            yield Copied(start, start + destination.numel(), entry, runs.first)


@dataclass(frozen=True)
class _Block:
    """The part of a piece that is read at once (some runs, or a part of a long one), and its place in the parameter."""

    source: Runs
    target: int


def _blocks(source: Runs, target: int, item_bytes: int) -> Iterator[_Block]:
    """Cuts a piece into blocks that fit into the buffer: several runs, or a part of one run."""
    limit = max(1, BLOCK_BYTES // item_bytes)
    num_runs = max(1, limit // (source.stride if _read_together(source, item_bytes) else source.length))
    for run in range(0, source.count, num_runs):
        count, number = min(num_runs, source.count - run), run * source.length
        for offset in range(0, source.length, limit):  # more than one offset only if a run is longer than the buffer
            length, first = min(limit, source.length - offset), source.at(number + offset)
            yield _Block(Runs(first, count, length, source.stride), target + number + offset)


def _read_together(runs: Runs, item_bytes: int) -> bool:
    """Whether the gap between two runs is so short that one read for all is faster."""
    return (runs.stride - runs.length) * item_bytes < GAP_BYTES


class _Files:
    """Open file descriptors by path, closed together, and one buffer that all reads use.

    A new buffer for each block would fragment malloc's heap: the holes would be as large as the tensor in all.
    """

    def __init__(self, pin_memory: bool) -> None:
        self._descriptors: dict[Path, int] = {}
        # 8: the largest element. Pinned, a GPU reads it without a copy on the way.
        self._buffer = torch.empty(max(BLOCK_BYTES, 8), dtype=torch.uint8, pin_memory=pin_memory)
        self._view = memoryview(self._buffer.numpy())  # type: ignore[arg-type]  # numpy supports it

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, entry: TensorEntry, runs: Runs) -> torch.Tensor:
        """Runs of a tensor as [count, length], valid until the next read."""
        size, step = entry.item_bytes, runs.length
        if _read_together(runs, size):
            step = runs.stride
            self._fill(entry, runs.first, self._view[: ((runs.count - 1) * step + runs.length) * size])
        else:
            for run in range(runs.count):
                start = run * step * size
                self._fill(entry, runs.first + run * runs.stride, self._view[start : start + step * size])
        values = self._buffer.view(torch_dtype(entry.torch_name))
        return values.as_strided((runs.count, runs.length), (step, 1))

    def _fill(self, entry: TensorEntry, element: int, buffer: memoryview) -> None:
        """Fills ``buffer`` with the tensor's data from ``element`` on."""
        offset, done = entry.offset + element * entry.item_bytes, 0
        try:
            if entry.file not in self._descriptors:
                self._descriptors[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
            while done < len(buffer):
                count = os.preadv(self._descriptors[entry.file], [buffer[done:]], offset + done)
                if count == 0:
                    raise _cut(entry)
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name!r} cannot be read at byte {offset + done}: {error.strerror}"
            ) from error


def _cut(entry: TensorEntry) -> CheckpointError:
    return CheckpointError(f"{entry.file}: tensor {entry.name!r} ends early: the file was cut while loading")
