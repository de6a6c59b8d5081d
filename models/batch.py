"""One step's input as tensors: which tokens, where each sequence's state lies. Passed to every layer as an argument.

Rows are ordered: first all decode rows (one token of a sequence that has state), then the prefill chunks.
Legend: T tokens of the step, D decode rows, P pages of a table, S sampled rows.
"""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class StateCopy:
    """Recurrent state inside a chunk. Each DeltaNet layer in turn appends copies of its conv and delta."""

    offset: int  # tokens of the chunk; in the engine's plans a multiple of 64, the block of the chunked delta rule
    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class PrefillChunk:
    """A run of prompt tokens of one sequence: rows [row, row + length) of the batch, positions from ``start``."""

    row: int
    length: int
    start: int
    slot: int
    pages: torch.Tensor  # [P], enough for start + length tokens
    copies: tuple[StateCopy, ...] = ()  # wanted inside the chunk: offsets ascend, and are below length

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.length)


@dataclass(frozen=True)
class Batch:
    """The sequences of one step."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    kv_index: torch.Tensor  # [T] int64: page * page_size + offset, where each token's key and value go
    num_decodes: int
    decode_slots: torch.Tensor  # [D] int64, recurrent-state slots
    decode_pages: torch.Tensor  # [D, P] int64, padded with page 0
    decode_lengths: torch.Tensor  # [D] int64, tokens including this one
    prefills: tuple[PrefillChunk, ...]
    sample_rows: torch.Tensor  # [S] int64, rows whose logits are wanted

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]
