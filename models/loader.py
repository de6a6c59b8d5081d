"""Fills a rank's parameters from the byte ranges that its weight plan names, and audits what it did.

Plain ``pread`` through one bounded buffer: a memory map would count the file's pages as this process' memory, and a
tensor at a time would double the peak for fused experts.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from splitrank.models.checkpoint import Checkpoint
from splitrank.models.safetensors_header import CheckpointError, TensorEntry
from splitrank.models.weight_plan import AuditError, Box, LocalParameter, Piece, WeightPlan, box_size

BLOCK_BYTES = 8 * 2**20
_TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass
class LoadStatistics:
    """What the loader read and wrote, in bytes; ``written`` counts elements a parameter."""

    bytes_read: int = 0
    written: dict[str, int] = field(default_factory=dict)


def load_weights(
    module: torch.nn.Module,
    plan: WeightPlan,
    checkpoint: Checkpoint,
    on_progress: Callable[[int], object] = lambda num_bytes: None,
) -> LoadStatistics:
    """Reads every piece of ``plan`` into ``module``'s parameters, which must be exactly those of the plan.

    ``on_progress`` gets the bytes of each filled block, in the local dtype. Raises ``CheckpointError`` for a file that
    ends early and ``AuditError`` if a parameter was not written exactly once.
    """
    parameters = dict(module.named_parameters())
    check_allocation(parameters, plan)
    statistics = LoadStatistics()
    with _Files() as files:
        for parameter in plan.parameters:
            for piece in parameter.pieces:
                _fill(
                    parameters[parameter.name], piece, checkpoint.tensors[piece.tensor], files, statistics, on_progress
                )
                done = statistics.written.get(parameter.name, 0)
                statistics.written[parameter.name] = done + box_size(piece.target)
    for parameter in plan.parameters:
        if statistics.written[parameter.name] != prod(parameter.shape):
            raise AuditError(f"parameter {parameter.name}: {statistics.written[parameter.name]} elements written")
    return statistics


def check_allocation(parameters: dict[str, torch.nn.Parameter], plan: WeightPlan) -> None:
    """Planned = allocated: the same names, shapes and dtypes, hence the same bytes; and 64-byte-aligned storage."""
    planned = {p.name: (p.shape, p.dtype) for p in plan.parameters}
    allocated = {name: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in parameters.items()}
    for name in sorted(planned.keys() | allocated.keys()):
        if planned.get(name) != allocated.get(name):
            raise AuditError(f"parameter {name}: planned {planned.get(name)}, allocated {allocated.get(name)}")
    for name, parameter in parameters.items():
        # torch's GEMM picks another kernel, with other rounding, for a misaligned operand.
        if parameter.data_ptr() % 64:
            raise AuditError(f"parameter {name}: storage is not aligned to 64 bytes")


class _Files:
    """Open file descriptors by path, closed together, and the one buffer that all reads go through.

    A buffer a block would leave holes in malloc's heap, as large together as the tensor.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._buffer = torch.empty(BLOCK_BYTES, dtype=torch.uint8)

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, entry: TensorEntry, block: "_Block") -> torch.Tensor:
        """A block of a tensor, valid until the next read."""
        num_bytes = prod(block.shape) * entry.item_bytes
        if num_bytes > self._buffer.nbytes:  # a single row larger than a block
            self._buffer = torch.empty(num_bytes, dtype=torch.uint8)
        raw = self._buffer[:num_bytes]
        self._fill(entry, block.element * entry.item_bytes, memoryview(raw.numpy()))  # type: ignore[arg-type]  # numpy supports it
        return raw.view(_TORCH_DTYPES[entry.dtype]).view(block.shape)

    def _fill(self, entry: TensorEntry, offset: int, buffer: memoryview) -> None:
        if entry.file not in self._descriptors:
            self._descriptors[entry.file] = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptors[entry.file], [buffer[done:]], entry.offset + offset + done)
            if count == 0:
                raise CheckpointError(f"{entry.file}: tensor {entry.name!r} ends early: the file was cut while loading")
            done += count


@dataclass(frozen=True)
class _Block:
    """A contiguous run of rows to read: where it lies in the tensor, its shape, and where it goes in the target."""

    element: int
    shape: tuple[int, ...]
    target: tuple[slice | int, ...]


def _fill(
    parameter: torch.Tensor,
    piece: Piece,
    entry: TensorEntry,
    files: _Files,
    statistics: LoadStatistics,
    on_progress: Callable[[int], object],
) -> None:
    source_shape = tuple(stop - start for start, stop in piece.source)
    target = parameter.data[tuple(slice(start, stop) for start, stop in piece.target)].view(source_shape)
    columns = piece.source[-1]
    for block in _blocks(entry.shape, piece.source, entry.item_bytes):
        buffer = files.read(entry, block)
        destination = target[block.target]
        destination.copy_(buffer[..., columns[0] : columns[1]] if buffer.shape[-1] != destination.shape[-1] else buffer)
        statistics.bytes_read += buffer.nbytes
        on_progress(destination.numel() * parameter.element_size())


def _blocks(shape: tuple[int, ...], box: Box, item_bytes: int) -> Iterator[_Block]:
    """Splits a box into runs that are contiguous on disk, of at most BLOCK_BYTES (or one row, if that is larger).

    Column slices are read in whole rows: the last dimension is widened to its full extent.
    """
    wide = (*box[:-1], (0, shape[-1])) if len(shape) > 1 else box
    partial = [dim for dim, (start, stop) in enumerate(wide) if (start, stop) != (0, shape[dim])]
    axis = max(partial, default=0)  # dimensions after it are whole: rows along it are contiguous
    while axis < len(shape) - 2 and prod(shape[axis + 1 :]) * item_bytes > BLOCK_BYTES:
        axis += 1  # rows larger than a block: walk them one by one
    row_items = prod(shape[axis + 1 :])
    rows_a_block = max(1, BLOCK_BYTES // (row_items * item_bytes))
    strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    start, stop = wide[axis]
    for outer in itertools.product(*(range(*wide[dim]) for dim in range(axis))):
        base = sum(index * stride for index, stride in zip(outer, strides, strict=False))
        local = tuple(index - wide[dim][0] for dim, index in enumerate(outer))
        for row in range(start, stop, rows_a_block):
            end = min(row + rows_a_block, stop)
            yield _Block(
                element=base + row * row_items,
                shape=(end - row, *shape[axis + 1 :]),
                target=(*local, slice(row - start, end - start)),
            )


def parameter_dtype(parameter: LocalParameter) -> torch.dtype:
    """torch's dtype of a planned parameter."""
    dtype: torch.dtype = getattr(torch, parameter.dtype)
    return dtype
