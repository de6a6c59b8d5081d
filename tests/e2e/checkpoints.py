"""Copies of the demo checkpoint with something wrong, by files alone."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.servers import DEMO

WEIGHTS = "model.safetensors"


def copy_demo(folder: Path) -> Path:
    """Small files are copied, the weights are a link: ``own_weights`` makes them a file of their own."""
    folder.mkdir()
    for file in DEMO.iterdir():
        if file.name == WEIGHTS:
            os.symlink(file, folder / file.name)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def own_weights(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    """The weights file, with its bytes changed. Returns it."""
    file = folder / WEIGHTS
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(change(data))
    return file


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file with its JSON header changed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + size :]


def with_index(folder: Path, shard_of: Callable[[str], str]) -> Path:
    """Adds an index that names a shard for every tensor. The weights become shard ``model-1.safetensors``."""
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    names = [name for name in json.loads(data[8 : 8 + size]) if name != "__metadata__"]
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {name: shard_of(name) for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
