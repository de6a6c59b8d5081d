"""One step's rows on a GPU: decode rows first, then the segments of prompts, round by round.

A prefill chunk is one segment, or several if the recurrent state is wanted inside it: a segment ends where the state
is copied. The n-th segments of all chunks form a round, whose rows lie together, so that each kernel of the delta rule
runs once a round. Everything else takes the rows of all rounds at once.
Legend: T rows, D decode rows, P pages of a table, S sampled rows. All tensors are int32.
"""

from dataclasses import dataclass

import torch

from splitrank.models.batch import StateCopy
from splitrank.models.ops.gpu.sequences import Sequences


@dataclass(frozen=True)
class Round:
    """Segments whose delta rule runs together, and copies of the state that are made behind it."""

    rows: slice  # among the prefill rows
    sequences: Sequences
    copies: tuple[tuple[int, StateCopy], ...] = ()  # recurrent slot, and where its conv and delta are appended


@dataclass(frozen=True)
class GpuBatch:
    """The sequences of one step. Rows from ``num_live`` on are padding: they lie in the scratch slot and page."""

    token_ids: torch.Tensor  # [T]; -1: the last sampled token of the row's slot
    slots: torch.Tensor  # [T] row of the request table, and recurrent slot
    positions: torch.Tensor  # [T] tokens before the row's
    last_tokens: torch.Tensor  # [slots] of the request table
    num_live: torch.Tensor  # [1]
    num_decodes: int
    decode_pages: torch.Tensor  # [D, P]
    rounds: tuple[Round, ...] = ()
    segments: Sequences | None = None  # of all rounds, in the order of their rows
    sample_rows: torch.Tensor | None = None  # [S]; None: every row

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_samples(self) -> int:
        return self.num_tokens if self.sample_rows is None else self.sample_rows.shape[0]

    @property
    def decode_slots(self) -> torch.Tensor:
        return self.slots[: self.num_decodes]

    @property
    def decode_positions(self) -> torch.Tensor:
        return self.positions[: self.num_decodes]
