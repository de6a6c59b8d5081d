"""Safetensors files byte by byte, so that tests can write the wrong ones too; and bytes that this process reads."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Header = dict[str, Any]
Result = TypeVar("Result")


def read_raw(file: Path) -> tuple[Header, bytes]:
    """The header as parsed JSON, and the data behind it."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_raw(file: Path, header: Header | str, data: bytes) -> None:
    """A file with this header (JSON text is written as it is) and data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_header(file: Path, edit: Callable[[Header], None]) -> None:
    """Changes the parsed header in place; the data stays."""
    header, data = read_raw(file)
    edit(header)
    write_raw(file, header, data)


def add_tensor(file: Path, name: str, dtype: str, shape: list[int], num_bytes: int) -> None:
    """Appends a tensor of zeros."""
    header, data = read_raw(file)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + num_bytes]}
    write_raw(file, header, data + bytes(num_bytes))


def bytes_read_by(action: Callable[[], Result]) -> tuple[int, Result]:
    """Bytes that all read calls of this process returned meanwhile (Linux: rchar), and what ``action`` returned."""
    before, cost = _read_counter()
    result = action()
    after, _ = _read_counter()
    return after - before - cost, result


def _read_counter() -> tuple[int, int]:
    """The counter, and what reading it adds to it."""
    descriptor = os.open("/proc/self/io", os.O_RDONLY)
    try:
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    return int(text.split()[1]), len(text)
