"""Reads what a checkpoint folder holds from its headers, and checks it against the config. No data, no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from splitrank.models.config import ModelConfig
from splitrank.models.dtypes import STORED_DTYPES
from splitrank.models.errors import CheckpointError
from splitrank.models.json_file import read_json_object
from splitrank.models.safetensors_header import Header, TensorEntry, read_header
from splitrank.models.tensor_names import (
    EMBEDDING,
    HEAD,
    canonical_name,
    dense_shapes,
    expert_name,
    expert_shapes,
    fused_expert_name,
    ignored_rule,
    per_expert_projections,
)

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TIED_HEAD = "the config ties the head to the embedding, and they are equal"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """The text model's tensors by canonical name, the ignored ones with their rule, and the bytes of all headers."""

    folder: Path
    tensors: dict[str, TensorEntry]
    ignored: dict[str, str]
    header_bytes: dict[Path, int]

    def has_fused(self, layer: int, projection: str) -> bool:
        return fused_expert_name(layer, projection) in self.tensors


def open_checkpoint(folder: Path, config: ModelConfig) -> Checkpoint:
    """Reads all headers of ``folder`` and checks that they hold exactly the model of ``config``.

    With a tied config a stored head is ignored, or replaces a missing embedding; ``settle_head`` compares the two.
    """
    headers = {file: read_header(file) for file in weight_files(folder)}
    _check_index(folder, headers)
    checkpoint = _catalogue(folder, headers, config)
    _check_against_config(checkpoint, config)
    return checkpoint


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those of the index, or the single file."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    if (folder / INDEX).exists():
        names = sorted(set(_weight_map(folder).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder / missing[0]}: missing shard ({len(missing)} of {len(names)} that the index names)"
            )
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    for link in (folder / INDEX, folder / SINGLE):
        if link.is_symlink():  # a folder of links into a store of files, which lacks this one
            raise CheckpointError(f"{link}: a link to {link.readlink()}, which does not exist")
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: safetensors files, but neither {SINGLE} nor {INDEX}")
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: pickled weights are not loaded (they can run code); convert to safetensors"
        )
    raise CheckpointError(f"{folder}: no weights ({SINGLE} or {INDEX})")


def _weight_map(folder: Path) -> dict[str, str]:
    file = folder / INDEX
    weight_map = read_json_object(file).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{file}: not a safetensors index: its weight_map is no object")
    if not weight_map:
        raise CheckpointError(f"{file}: the weight_map is empty")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name:
            raise CheckpointError(f"{file}: tensor {tensor!r} names no file, but {name!r}")
        if (
            PurePosixPath(name).is_absolute()
            or len(PurePosixPath(name).parts) != 1
            or name in (".", "..")
            or "\\" in name
        ):
            raise CheckpointError(f"{file}: tensor {tensor!r} points to {name!r}, outside the checkpoint folder")
    return weight_map


def _check_index(folder: Path, headers: dict[Path, Header]) -> None:
    """The index and the shards must name the same tensors in the same files, except for tensors that are ignored."""
    if not (folder / INDEX).exists():
        return
    indexed = {(tensor, folder / name) for tensor, name in _weight_map(folder).items()}
    held = {(entry.name, file) for file, header in headers.items() for entry in header.tensors}
    for tensor, file in sorted(indexed ^ held):
        if ignored_rule(tensor) is not None:
            continue
        if (tensor, file) in indexed:
            raise CheckpointError(f"{file}: tensor {tensor!r} is in the index, but not in this file")
        raise CheckpointError(f"{file}: tensor {tensor!r} is in this file, but the index does not place it there")


def _catalogue(folder: Path, headers: dict[Path, Header], config: ModelConfig) -> Checkpoint:
    tensors: dict[str, TensorEntry] = {}
    ignored: dict[str, str] = {}
    entries = [entry for header in headers.values() for entry in header.tensors]
    has_embedding = any(canonical_name(entry.name) == EMBEDDING for entry in entries)
    for entry in entries:
        rule = ignored_rule(entry.name)
        name = canonical_name(entry.name)
        if rule is None and name == HEAD and config.tie_word_embeddings:
            rule, name = (TIED_HEAD, name) if has_embedding else (None, EMBEDDING)
        if rule is not None:
            ignored[entry.name] = rule
        elif name in tensors:
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name!r} is a duplicate of {tensors[name].name!r} "
                f"in {tensors[name].file.name}"
            )
        else:
            tensors[name] = entry
    return Checkpoint(folder, tensors, ignored, {file: header.header_bytes for file, header in headers.items()})


def _check_against_config(checkpoint: Checkpoint, config: ModelConfig) -> None:
    expected = dict(dense_shapes(config))
    for layer in range(config.num_hidden_layers):
        for projection in ("gate_up_proj", "down_proj"):
            expected.update(_expected_experts(checkpoint, config, layer, projection))
    _check_entries(checkpoint, expected)
    for name in checkpoint.tensors.keys() - expected.keys():
        entry = checkpoint.tensors[name]
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name!r} is not part of the model that config.json describes"
        )


def _expected_experts(
    checkpoint: Checkpoint, config: ModelConfig, layer: int, projection: str
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer's projection as it is stored: fused or per expert. Both at once is a duplicate."""
    shapes = expert_shapes(config)
    fused = fused_expert_name(layer, projection)
    single = {
        expert_name(layer, expert, part): shapes["one down_proj" if part == "down_proj" else part]
        for expert in range(config.num_experts)
        for part in per_expert_projections(projection)
    }
    if fused not in checkpoint.tensors:
        # If both forms are missing, the error names the fused tensor, not 2 x 256 single ones.
        return single if any(name in checkpoint.tensors for name in single) else {fused: shapes[projection]}
    twice = next((name for name in single if name in checkpoint.tensors), None)
    if twice is not None:
        entry = checkpoint.tensors[twice]
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name!r} is a duplicate: {checkpoint.tensors[fused].name!r} holds it too"
        )
    return {fused: shapes[projection]}


def _check_entries(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in checkpoint.tensors]
    if missing:
        file = checkpoint.folder / (INDEX if (checkpoint.folder / INDEX).exists() else SINGLE)
        raise CheckpointError(f"{file}: tensor '…{missing[0]}' is missing{_and_more(missing[1:])}")
    for name, shape in expected.items():
        entry = checkpoint.tensors[name]
        if entry.dtype not in STORED_DTYPES:
            known = ", ".join(STORED_DTYPES)
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name!r} has dtype {entry.dtype}; splitrank reads {known}"
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name!r} has shape {list(entry.shape)}, config.json implies {list(shape)}"
            )


def _and_more(rest: Iterable[str]) -> str:
    count = len(list(rest))
    return f" (and {count} more)" if count else ""
