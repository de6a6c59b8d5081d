"""What a rank knows of the requests it computes: one row a slot. Plans say what changes; nothing else is sent again.

The tensors lie on the device, where a batch is gathered from them. Lengths are kept on the host too, because the shapes
of a batch come from them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from splitrank.models.batch import Batch
from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import AdmittedRequest, NewPages
from splitrank.serving.rank.sampling_state import SamplingState


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
        self.page_size, self.device = page_size, device
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
        prompt = torch.tensor(new.prompt_token_ids, dtype=torch.int64, device=self.device)
        self.put(
            new.slot, MovedRow(Row(new.request_number, prompt, sampling), new.start, self.last_tokens.new_zeros(()))
        )

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

    def advance(self, batch: Batch, host_slots: npt.NDArray[np.int64]) -> None:
        """The step has computed ``batch``; ``host_slots`` are its ``decode_slots`` [D]."""
        self.lengths.index_copy_(0, batch.decode_slots, batch.decode_lengths)
        self.host_lengths[host_slots] += 1
        for chunk in batch.prefills.chunks:
            self._set_length(chunk.slot, chunk.start + chunk.length)

    def put_tokens(self, slots: list[int], tokens: torch.Tensor) -> None:
        """tokens [S], one a slot."""
        places = torch.from_numpy(np.array(slots, dtype=np.int64)).to(self.device)
        self.last_tokens.index_copy_(0, places, tokens)

    def _set_length(self, slot: int, length: int) -> None:
        self.host_lengths[slot] = length
        self.lengths[slot] = length
