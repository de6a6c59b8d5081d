"""One request in the scheduler: its tokens, how far it is scheduled, its pages and its slot."""

from enum import Enum

from splitrank.serving.engine.request_columns import RequestColumns
from splitrank.serving.protocol.sampling_params import SamplingParams


class Status(Enum):
    WAITING = "waiting"  # the ranks do not know it
    RUNNING = "running"  # owns a slot, and pages for its scheduled tokens
    SWAPPED = "swapped"  # its state and pages are in the ranks' host memory
    FINISHED = "finished"


class Request:
    """Positions: the prompt at 0..P-1, generated token n at P + n.

    The last prompt chunk samples generated token 0. A decode takes generated token n as input and samples n + 1. So the
    last generated token is no input, unless a step was planned before that token was known to be the last.

    ``number`` is the order of arrival and is never reused. ``order`` is the order in which requests are served: by
    priority, then by arrival. "Older" means: of smaller order.
    """

    __slots__ = (
        "_columns", "_pages", "aborted", "ended", "max_new_tokens", "num_cached", "number", "order", "output_token_ids",
        "params", "place", "prompt_token_ids", "request_id", "status", "was_regular",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        max_new_tokens: int,
        columns: RequestColumns,
    ) -> None:
        self.number, self.request_id, self.params = number, request_id, params
        self.order = (params.priority, number)
        self.prompt_token_ids, self.max_new_tokens = prompt_token_ids, max_new_tokens
        self.output_token_ids: list[int] = []
        self.status = Status.WAITING
        self.aborted = False
        self.ended = False  # its last output was sent; steps in flight may still compute it
        self.was_regular = False  # it ended by a stop token or by its length
        self.num_cached = 0  # tokens of the prompt that came from a snapshot
        self._pages: list[int] = []
        self._columns, self.place = columns, columns.add(self)
        columns.prompt_length[self.place] = len(prompt_token_ids)
        columns.max_new[self.place] = max_new_tokens
        columns.has_stops[self.place] = bool(params.stop_token_ids)
        columns.slot[self.place] = columns.last_step[self.place] = -1

    def renumber(self, number: int) -> None:
        """As if it came now. Only before the ranks know it."""
        assert self.status is Status.WAITING, "ranks know the request by its number"
        self.number, self.order = number, (self.params.priority, number)

    @property
    def num_scheduled(self) -> int:
        """Tokens computed, or to be computed by steps in flight."""
        return int(self._columns.scheduled[self.place])

    @num_scheduled.setter
    def num_scheduled(self, value: int) -> None:
        self._columns.scheduled[self.place] = value

    @property
    def num_in_flight(self) -> int:
        """Steps in flight that compute this request."""
        return int(self._columns.in_flight[self.place])

    @num_in_flight.setter
    def num_in_flight(self, value: int) -> None:
        self._columns.in_flight[self.place] = value

    @property
    def slot(self) -> int:
        return int(self._columns.slot[self.place])

    @slot.setter
    def slot(self, value: int) -> None:
        self._columns.slot[self.place] = value

    @property
    def pages(self) -> tuple[int, ...]:
        return tuple(self._pages)

    def add_pages(self, pages: list[int]) -> None:
        self._pages += pages
        self._columns.num_pages[self.place] = len(self._pages)

    def take_pages(self) -> list[int]:
        """Its pages; it owns none afterwards."""
        pages, self._pages = self._pages, []
        self._columns.num_pages[self.place] = 0
        return pages

    @property
    def num_pages(self) -> int:
        return len(self._pages)

    @property
    def num_known(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_prefilling(self) -> bool:
        return self.num_scheduled < len(self.prompt_token_ids)

    @property
    def is_over(self) -> bool:
        return self.aborted or self.ended

    def abort(self) -> None:
        self.aborted = True
        self._columns.over[self.place] = True

    def end(self, is_regular: bool) -> None:
        self.ended, self.was_regular = True, is_regular
        self._columns.over[self.place] = True

    def note_planned(self, end: int, step: int) -> None:
        """``step`` computes the request up to position ``end``."""
        self.num_scheduled = end
        self.num_in_flight += 1
        self._columns.last_step[self.place] = step

    def next_end(self, chunk_size: int) -> int:
        """Where its next chunk or token ends. A chunk ends at an absolute multiple of ``chunk_size`` or with the
        prompt."""
        start, length = self.num_scheduled, len(self.prompt_token_ids)
        if start >= length:
            return start + 1
        return min((start // chunk_size + 1) * chunk_size, length)

    def tokens_between(self, begin: int, end: int) -> list[int]:
        """Prompt and generated tokens at positions begin to end - 1."""
        prompt_end = len(self.prompt_token_ids)
        output = self.output_token_ids[max(begin - prompt_end, 0) : max(end - prompt_end, 0)]
        return output if begin >= prompt_end else self.prompt_token_ids[begin:end] + output

    def accept(self, token: int, eos_token_ids: tuple[int, ...]) -> str | None:
        """Appends a generated token. Returns the finish reason if it is the last one.

        Before ``min_tokens`` the sampler bans stop tokens. With a grammar one comes all the same when the answer is
        whole, since nothing else may follow.
        """
        may_stop = bool(self.params.grammar) or len(self.output_token_ids) >= self.params.min_tokens
        self.output_token_ids.append(token)
        self._columns.num_output[self.place] += 1
        if may_stop and self._is_stop_token(token, eos_token_ids):
            return "stop"
        return "length" if len(self.output_token_ids) >= self.max_new_tokens else None

    def _is_stop_token(self, token: int, eos_token_ids: tuple[int, ...]) -> bool:
        return token in self.params.stop_token_ids or (not self.params.ignore_eos and token in eos_token_ids)
