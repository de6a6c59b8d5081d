"""Decides whether the head is the embedding, as ``transformers`` does (``PreTrainedModel.tie_weights``).

``tie_word_embeddings`` means that the embedding is used where no head is stored, and the other way round. Some
finetunes keep the flag and store a head of their own. If both tensors are stored and differ, both are used.
"""

from dataclasses import replace
from pathlib import Path

from splitrank.models.checkpoint import TIED_HEAD, Checkpoint, open_checkpoint
from splitrank.models.config import ModelConfig
from splitrank.models.safetensors_header import TensorEntry
from splitrank.models.tensor_names import EMBEDDING, HEAD

_BLOCK_BYTES = 8 * 2**20


def settle_head(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Checkpoint]:
    """The checkpoint, and ``config`` with ``tie_word_embeddings`` as it is served.

    Reads headers. If the config ties a head that is stored, it reads the two tensors, too, until they differ.
    """
    checkpoint = open_checkpoint(folder, config)
    if TIED_HEAD not in checkpoint.ignored.values():
        return config, checkpoint
    untied = replace(config, tie_word_embeddings=False)
    with_head = open_checkpoint(folder, untied)
    if _same_data(with_head.tensors[EMBEDDING], with_head.tensors[HEAD]):
        return config, checkpoint
    return untied, with_head


def describe_head(config: ModelConfig, tied: bool) -> str:
    """The decision in words; ``config`` as it was read."""
    if tied:
        return "tied to the embedding"
    if config.tie_word_embeddings:
        return "its own tensor (config.json ties it to the embedding, but both are stored and differ)"
    return "its own tensor"


def _same_data(one: TensorEntry, other: TensorEntry) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for start in range(0, one.num_bytes, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, one.num_bytes - start)
            if first.read(size) != second.read(size):
                return False
    return True
