"""The manifest: a file beside an output that says with which model and settings it was made."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from splitrank.serving.launch.answer_settings import answer_settings
from splitrank.serving.launch.file_hash import hash_files
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.protocol.messages import LaunchSpec


def manifest_path(output: Path) -> Path:
    return output.with_name(output.name + ".manifest.json")


def describe_run(spec: LaunchSpec, settings: ApiSettings) -> dict[str, Any]:
    """The model's content and the settings that answers depend on."""
    return {"model_hash": hash_model(Path(spec.model_dir)), **answer_settings(spec), **asdict(settings)}


def hash_model(folder: Path) -> str:
    """Hash of the names, sizes and contents of all files; of large files, of samples spread over the whole length."""
    kinds = (".json", ".jinja", ".safetensors")
    return hash_files([path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in kinds])


def check_manifest(output: Path, now: dict[str, Any]) -> None:
    """``ValueError`` with the first difference if the output was made with other settings than ``now``."""
    if not output.exists() or output.stat().st_size == 0:
        return
    path = manifest_path(output)
    then = _read(path, output)
    for name in now | then:
        if then.get(name) != now.get(name):
            raise ValueError(
                f"{output} was written with {name} = {then.get(name)}, but now it is {now.get(name)}: "
                "name another --output or give --overwrite"
            )


def _read(path: Path, output: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(
            f"{output} exists and {path.name} is not beside it, so this command did not write it: "
            "name another --output or give --overwrite"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable ({error}); give --overwrite to start anew") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a manifest; give --overwrite to start anew")
    return found


@contextmanager
def locked_manifest(output: Path) -> Iterator[BinaryIO]:
    """Locks the output: two runs that append to it would both answer everything. The lock ends with the process."""
    with open(manifest_path(output), "a+b") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{output}: another run is writing this output") from None
        yield file


def write_manifest(file: BinaryIO, content: dict[str, Any]) -> None:
    """Writes in place, since the lock is on this file. A torn file is harmless while the output is empty."""
    file.truncate(0)
    file.write(json.dumps(content, indent=1).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
