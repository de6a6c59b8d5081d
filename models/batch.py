"""The input of one step as tensors: tokens, positions, pages and slots. Every layer gets it as an argument.

Rows are ordered: first all decode rows (one token of a sequence that has state), then the prefill chunks.
Legend: T rows of the step, D decode rows, N prefill chunks, P pages of a table, S sampled rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class StateCopy:
    """The recurrent state inside a chunk. Each DeltaNet layer in turn appends copies of its ``conv`` and ``delta``."""

    offset: int  # tokens of the chunk; in the engine's plans a multiple of 64, the block of the chunked delta rule
    tensors: list[torch.Tensor] = field(default_factory=list)


class Chunk(NamedTuple):
    """One prefill chunk on the host: rows [row, row + length) of the batch, positions from ``start``."""

    row: int
    length: int
    start: int
    slot: int
    copies: tuple[StateCopy, ...] = ()  # to be made inside the chunk: offsets ascend, and are below length

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.length)


@dataclass(frozen=True)
class PrefillRows:
    """The prefill chunks, one for each sequence. The tensors hold the same as ``chunks``: kernels read the tensors on
    the device; loops on the host and the sizes of launches use ``chunks``, without a copy from the device."""

    chunks: tuple[Chunk, ...]
    cu_seqlens: torch.Tensor  # [N + 1] int32, first row of each chunk among the prefill rows; last, their number
    starts: torch.Tensor  # [N] int32, tokens before the chunk
    slots: torch.Tensor  # [N] int64
    pages: torch.Tensor  # [N, P] int64, enough for start + length tokens; padded with page 0

    def __iter__(self) -> Iterator[tuple[Chunk, torch.Tensor]]:
        """Each chunk with its row of ``pages``."""
        return zip(self.chunks, self.pages, strict=True)

    def __len__(self) -> int:
        return len(self.chunks)


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
    prefills: PrefillRows
    sample_rows: torch.Tensor  # [S] int64, rows whose logits are wanted

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_samples(self) -> int:
        return self.sample_rows.shape[0]
