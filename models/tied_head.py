"""Whether the head is the embedding, decided as ``transformers`` does: by what is stored, where both tensors are.

``tie_word_embeddings`` says what stands for a tensor that is not stored. Finetunes keep the flag and store a head of
their own: if both are stored and differ, both are used (``PreTrainedModel.tie_weights``).
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

    Reads headers; only if the config ties a head that is stored, the two tensors as well, up to where they differ.
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
    """What was decided, for people. ``config`` is as it was read."""
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
