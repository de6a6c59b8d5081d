"""What a rank knows of the requests it computes: one row a slot. Plans say what changes; nothing else is sent again.

The tensors lie on the device, where a batch is gathered from them. Lengths and pages are kept on the host too, because
the shapes of a batch and the blocks of a prompt come from them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import AdmittedRequest, NewPages
from splitrank.serving.rank.device_writes import DeviceWrites, copied_to
from splitrank.serving.rank.sampling_state import SamplingState


@dataclass(frozen=True)
class Row:
    """What a request brings along. ``sampling`` is there on ranks that draw tokens only."""

    request: int
    prompt: torch.Tensor  # [P] int64, on the host
    sampling: SamplingState | None = None
    prompt_logprobs: int | None = None  # of ``SamplingParams``, on every rank: the head is split over tensor ranks


@dataclass(frozen=True)
class MovedRow:
    """A row out of the table, without its pages."""

    row: Row
    length: int
    last_token: torch.Tensor  # []


class RequestTable:
    """``pages`` [slots, max_pages]: a row's KV pages in order, then zeros; ``lengths`` [slots]: tokens computed;
    ``last_tokens`` [slots]: sampled, and not computed yet.

    All int64 on a CPU, whose index operations want it; int32 where there is a ``scratch_page``, that is on a GPU. There
    the table has one slot more, behind the others: rows that pad a step lie in it, with that page and length 0.
    """

    def __init__(
        self, num_slots: int, max_pages: int, page_size: int, device: torch.device, scratch_page: int | None = None
    ) -> None:
        self.page_size, self.device = page_size, device
        self.scratch_slot, self.scratch_page = num_slots, scratch_page
        dtype = torch.int64 if scratch_page is None else torch.int32
        count = num_slots + (scratch_page is not None)
        self.host_lengths = np.zeros(count, dtype=np.int64)
        self.pages = torch.zeros((count, max_pages), dtype=dtype, device=device)
        # On a CPU one memory: a tensor for operations, an array for the host.
        self.lengths = (
            torch.from_numpy(self.host_lengths)
            if scratch_page is None
            else torch.zeros(count, dtype=dtype, device=device)
        )
        self.last_tokens = torch.zeros(count, dtype=dtype, device=device)
        self._writes: DeviceWrites | None = None
        if scratch_page is not None:
            self.pages[num_slots, 0] = scratch_page
            self._writes = DeviceWrites(pages=self.pages.view(-1), lengths=self.lengths)
        self.host_pages: list[list[int]] = [[] for _ in range(num_slots)]
        self.rows: dict[int, Row] = {}  # by slot
        self._slots: dict[int, int] = {}  # by request

    @cached_property
    def host_page_table(self) -> npt.NDArray[np.int64]:
        """``pages`` as an array, on a CPU."""
        table: npt.NDArray[np.int64] = self.pages.numpy()
        return table

    def slot_of(self, request: int) -> int | None:
        return self._slots.get(request)

    def admit(self, new: AdmittedRequest, sampling: SamplingState | None) -> None:
        """A row without pages; ``new.start`` of its tokens will come from a snapshot."""
        prompt = torch.tensor(new.prompt_token_ids, dtype=torch.int64)
        row = Row(new.request_number, prompt, sampling, new.params.prompt_logprobs)
        self.put(new.slot, MovedRow(row, new.start, self.last_tokens.new_zeros(())))

    def put(self, slot: int, moved: MovedRow) -> None:
        assert slot not in self.rows, f"slot {slot} belongs to request {self.rows[slot].request}"
        self.rows[slot] = moved.row
        self._slots[moved.row.request] = slot
        self.set_length(slot, moved.length)
        self.last_tokens[slot] = moved.last_token

    def take(self, slot: int) -> MovedRow:
        """Removes a row; its pages are no longer its own."""
        self.flush()
        row = self.rows.pop(slot)
        del self._slots[row.request]
        self.pages[slot, : len(self.host_pages[slot])] = 0
        self.host_pages[slot] = []
        return MovedRow(row, int(self.host_lengths[slot]), self.last_tokens[slot].clone())

    def add_pages(self, new: NewPages) -> None:
        own = self.host_pages[new.slot]
        begin, end = len(own), len(own) + len(new.pages)
        own.extend(new.pages)
        if self._writes is None:
            self.pages[new.slot, begin:end] = torch.tensor(new.pages, dtype=self.pages.dtype)
            return
        first = new.slot * self.pages.shape[1] + begin
        for place, page in enumerate(new.pages, first):
            self._writes.put("pages", place, page)

    def flush(self) -> None:
        """On a GPU: what was changed since the last time is in the tensors for all that is launched from now on."""
        if self._writes is not None:
            self._writes.flush()

    def pages_of(self, slot: int, num_tokens: int) -> torch.Tensor:
        """The pages of a row's first ``num_tokens`` tokens."""
        count, has = pages_needed(num_tokens, self.page_size), len(self.host_pages[slot])
        assert count <= has, f"slot {slot} has {has} pages, not {count}"
        self.flush()
        return self.pages[slot, :count]

    def advance(self, host_slots: npt.NDArray[np.int64], ends: Iterable[tuple[int, int]]) -> None:
        """The step has computed a token of each of ``host_slots``, and prompts up to ``ends`` (slot, length).

        On a GPU, the step itself writes ``lengths`` of ``host_slots``.
        """
        self.host_lengths[host_slots] += 1
        for slot, length in ends:
            self.set_length(slot, length)

    def put_tokens(self, slots: list[int], tokens: torch.Tensor) -> None:
        """tokens [S], one a slot."""
        if self._writes is None:  # numpy's call on a few numbers takes a third of torch's
            self.last_tokens.numpy()[slots] = tokens.numpy()
            return
        places = copied_to(self.device, slots, torch.int64)
        self.last_tokens.index_copy_(0, places, tokens.to(self.last_tokens))

    def set_length(self, slot: int, length: int) -> None:
        self.host_lengths[slot] = length
        if self._writes is not None:
            self._writes.put("lengths", slot, length)
