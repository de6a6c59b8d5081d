"""Counters of all open requests as arrays, so that a step of many decodes is planned and committed without a loop.

A place is a request's index in the arrays, the same from its arrival to its end. ``Request`` reads and writes its own
counters here.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from splitrank.serving.engine.request import Request

Places = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_COUNTS = ("scheduled", "in_flight", "last_step", "slot", "num_pages", "prompt_length", "num_output", "max_new")
_FLAGS = ("over", "has_stops")


class RequestColumns:
    """``requests`` and the arrays of their counters, by place. ``Request`` says what the counters mean."""

    scheduled: Counts
    in_flight: Counts
    last_step: Counts
    slot: Counts
    num_pages: Counts
    prompt_length: Counts
    num_output: Counts  # committed tokens
    max_new: Counts
    over: Flags  # aborted or ended
    has_stops: Flags  # the request names stop tokens

    def __init__(self, size: int = 64) -> None:
        self.requests: list[Request | None] = [None] * size
        self._free = list(range(size - 1, -1, -1))
        for name in _COUNTS:
            setattr(self, name, np.zeros(size, dtype=np.int64))
        for name in _FLAGS:
            setattr(self, name, np.zeros(size, dtype=np.bool_))

    def add(self, request: "Request") -> int:
        """A free place, with all counters at zero."""
        if not self._free:
            self._double()
        place = self._free.pop()
        self.requests[place] = request
        for name in _COUNTS + _FLAGS:
            getattr(self, name)[place] = 0
        return place

    def remove(self, place: int) -> None:
        self.requests[place] = None
        self._free.append(place)

    def at(self, places: Places) -> "list[Request]":
        return [request for place in places.tolist() if (request := self.requests[place]) is not None]

    def _double(self) -> None:
        size = len(self.requests)
        self.requests += [None] * size
        self._free = list(range(2 * size - 1, size - 1, -1))
        for name in _COUNTS + _FLAGS:
            array = getattr(self, name)
            setattr(self, name, np.concatenate((array, np.zeros_like(array))))

    # ------------------------------------------------------------ many requests at once

    def is_decoding(self, places: Places) -> Flags:
        return (self.scheduled[places] >= self.prompt_length[places]) & ~self.over[places]

    def is_ready(self, places: Places, plans_ahead: bool) -> Flags:
        """Whether something can be planned; when planning ahead also a token that a step in flight still samples."""
        scheduled, prompt, num_output = self.scheduled[places], self.prompt_length[places], self.num_output[places]
        is_known = scheduled < prompt + num_output
        if plans_ahead:
            is_known |= (scheduled < prompt + self.max_new[places] - 1) & (self.in_flight[places] < 2)
        return is_known & ~self.over[places]

    def is_in_flight_since(self, places: Places, step: int) -> Flags:
        """Whether ``step`` or a later step in flight computes the request."""
        return (self.last_step[places] >= step) & (self.in_flight[places] > 0)

    def lacks_page(self, places: Places, page_size: int) -> Flags:
        """Whether the next token needs a new page."""
        return self.scheduled[places] >= self.num_pages[places] * page_size

    def note_decodes(self, places: Places, step: int) -> None:
        self.scheduled[places] += 1
        self.in_flight[places] += 1
        self.last_step[places] = step

    def is_last_by_length(self, places: Places) -> Flags:
        """Whether the next token is the last one that ``max_new`` allows."""
        return self.num_output[places] + 1 >= self.max_new[places]
