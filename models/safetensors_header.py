"""Reads and checks the header of a safetensors file: names, shapes, dtypes and byte ranges. No tensor data, no torch.

Format: 8 bytes of header length (little-endian), a JSON object, then the data. The safetensors library does not refuse
duplicate names. Its check of the file's length does not help here either, since byte ranges are read without it.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from splitrank.models.dtypes import STORED_DTYPES
from splitrank.models.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorEntry:
    """One tensor on disk. ``offset`` is absolute in the file, in bytes; ``dtype`` is safetensors' name."""

    name: str
    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int:
        return STORED_DTYPES[self.dtype].num_bytes

    @property
    def torch_name(self) -> str:
        """Name of the dtype in torch."""
        return STORED_DTYPES[self.dtype].name

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.item_bytes


@dataclass(frozen=True)
class Header:
    """All tensors of one file, and how many bytes its header takes."""

    tensors: tuple[TensorEntry, ...]
    header_bytes: int


def read_header(file: Path) -> Header:
    """Header of ``file``; raises ``CheckpointError`` for anything truncated, overlapping, duplicate or malformed."""
    try:
        size = file.stat().st_size
        with file.open("rb", buffering=0) as stream:  # a buffered read would read tensor data as well
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{file}: {size} bytes are too few for a safetensors header (empty or truncated)")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{file}: header of {length} bytes in a file of {size} (truncated, or not safetensors)"
                )
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    entries = [_entry(file, name, info, 8 + length) for name, info in _parse(file, text) if name != "__metadata__"]
    _check_layout(file, entries, 8 + length, size)
    return Header(tuple(entries), 8 + length)


def _parse(file: Path, text: bytes) -> list[tuple[str, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        merged = dict(pairs)
        if len(merged) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{file}: {twice!r} stands twice in the header")
        return merged

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise CheckpointError(f"{file}: the header is not valid JSON (not a safetensors file, or damaged)") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{file}: the header is not a JSON object")
    return list(parsed.items())


def _entry(file: Path, name: str, info: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = info["dtype"], tuple(info["shape"]), info["data_offsets"]
        sizes = (begin, end, *shape)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: tensor {name!r} has a malformed header entry") from None
    if not isinstance(dtype, str) or not all(isinstance(n, int) and n >= 0 for n in sizes) or end < begin:
        raise CheckpointError(f"{file}: tensor {name!r} has a malformed header entry")
    entry = TensorEntry(name, file, data_start + begin, shape, dtype)
    if dtype in STORED_DTYPES and entry.num_bytes != end - begin:
        raise CheckpointError(
            f"{file}: tensor {name!r} of {dtype} {list(shape)} needs {entry.num_bytes} bytes, "
            f"the header gives {end - begin}"
        )
    return entry


def _check_layout(file: Path, entries: list[TensorEntry], data_start: int, size: int) -> None:
    position = data_start
    for entry in sorted((e for e in entries if e.dtype in STORED_DTYPES), key=lambda e: e.offset):
        if entry.offset < position:
            raise CheckpointError(f"{file}: tensor {entry.name!r} overlaps the one before it")
        position = entry.offset + entry.num_bytes
        if position > size:
            raise CheckpointError(
                f"{file}: truncated: tensor {entry.name!r} ends at byte {position}, the file has {size} bytes"
            )
