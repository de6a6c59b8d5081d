"""What a rank knows of the requests it computes: one row a slot. Plans say what changes; nothing else is sent again.

The tensors lie on the device, where a batch is gathered from them. Lengths are kept on the host too, because the shapes
of a batch come from them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from splitrank.serving.cache import pages_needed
from splitrank.serving.messages import AdmittedRequest, ChunkPlan, NewPages
from splitrank.serving.sampling_state import SamplingState


@dataclass(frozen=True)
class Row:
    """What a request brings along. ``sampling`` is there on the sampling rank only."""

    request: int
    prompt: torch.Tensor  # [P] int64
    sampling: SamplingState | None = None


@dataclass(frozen=True)
class MovedRow:
    """A row out of the table, without its pages."""

    row: Row
    length: int
    last_token: torch.Tensor  # []


class RequestTable:
    """``pages`` [slots, max_pages]: a row's KV pages in order, then zeros; ``lengths`` [slots]: tokens computed;
    ``last_tokens`` [slots]: sampled, and not computed yet. All int64."""

    def __init__(self, num_slots: int, max_pages: int, page_size: int, device: torch.device) -> None:
        self.page_size = page_size
        self.pages = torch.zeros((num_slots, max_pages), dtype=torch.int64, device=device)
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.host_lengths = np.zeros(num_slots, dtype=np.int64)
        self.rows: dict[int, Row] = {}  # by slot
        self._num_pages = [0] * num_slots
        self._slots: dict[int, int] = {}  # by request

    def slot_of(self, request: int) -> int | None:
        return self._slots.get(request)

    def admit(self, new: AdmittedRequest, sampling: SamplingState | None) -> None:
        """A row without pages; ``new.start`` of its tokens will come from a snapshot."""
        prompt = torch.tensor(new.prompt_token_ids, dtype=torch.int64, device=self.pages.device)
        self.put(new.slot, MovedRow(Row(new.request, prompt, sampling), new.start, self.last_tokens.new_zeros(())))

    def put(self, slot: int, moved: MovedRow) -> None:
        assert slot not in self.rows, f"slot {slot} belongs to request {self.rows[slot].request}"
        self.rows[slot] = moved.row
        self._slots[moved.row.request] = slot
        self._set_length(slot, moved.length)
        self.last_tokens[slot] = moved.last_token

    def take(self, slot: int) -> MovedRow:
        """Removes a row; its pages are no longer its own."""
        row = self.rows.pop(slot)
        del self._slots[row.request]
        self.pages[slot, : self._num_pages[slot]] = 0
        self._num_pages[slot] = 0
        return MovedRow(row, int(self.host_lengths[slot]), self.last_tokens[slot].clone())

    def add_pages(self, new: NewPages) -> None:
        begin = self._num_pages[new.slot]
        end = self._num_pages[new.slot] = begin + len(new.pages)
        self.pages[new.slot, begin:end] = torch.tensor(new.pages, dtype=torch.int64)

    def pages_of(self, slot: int, num_tokens: int) -> torch.Tensor:
        """The pages of a row's first ``num_tokens`` tokens."""
        count = pages_needed(num_tokens, self.page_size)
        assert count <= self._num_pages[slot], f"slot {slot} has {self._num_pages[slot]} pages, not {count}"
        return self.pages[slot, :count]

    def advance(self, decode_slots: torch.Tensor, decodes: list[int], chunks: list[ChunkPlan]) -> None:
        """The step has computed one token of each of ``decodes`` [D], the same as a tensor, and the chunks."""
        if decodes:
            self.lengths[decode_slots] += 1
            self.host_lengths[decodes] += 1
        for chunk in chunks:
            self._set_length(chunk.slot, int(self.host_lengths[chunk.slot]) + chunk.num_tokens)

    def _set_length(self, slot: int, length: int) -> None:
        self.host_lengths[slot] = length
        self.lengths[slot] = length
