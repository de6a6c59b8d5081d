"""One request as the scheduler sees it: what is known, what is scheduled, what it owns."""

from dataclasses import dataclass, field
from enum import Enum

from splitrank.serving.sampling_params import SamplingParams


class Status(Enum):
    WAITING = "waiting"  # unknown to the ranks
    RUNNING = "running"  # owns a slot, and pages for the tokens scheduled
    SWAPPED = "swapped"  # state and pages lie in the ranks' host memory
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """Positions: the prompt at 0..P-1, generated token n at P + n.

    The last prompt chunk samples generated token 0; a decode feeds generated token n and samples n + 1, so the last
    generated token is never fed.
    """

    number: int  # order of arrival, never reused: smaller is older
    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    max_new_tokens: int
    output_token_ids: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    aborted: bool = False
    num_scheduled: int = 0  # tokens computed, or to be computed by steps in flight
    num_in_flight: int = 0  # steps in flight that hold this request
    last_step: int = -1
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    num_cached: int = 0  # tokens of the prompt that came from a snapshot

    @property
    def num_known(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_prefilling(self) -> bool:
        return self.num_scheduled < len(self.prompt_token_ids)

    @property
    def is_ready(self) -> bool:
        """Something can be scheduled: false while a sampled token is outstanding."""
        return not self.aborted and self.num_scheduled < self.num_known

    def next_end(self, chunk_size: int) -> int:
        """Where its next share of a step ends: a chunk at an absolute multiple of ``chunk_size`` or with the prompt, a
        decode after one token."""
        if not self.is_prefilling:
            return self.num_scheduled + 1
        return min((self.num_scheduled // chunk_size + 1) * chunk_size, len(self.prompt_token_ids))

    def tokens_between(self, begin: int, end: int) -> list[int]:
        """Tokens at positions begin to end - 1, of the prompt and what was generated."""
        prompt_end = len(self.prompt_token_ids)
        output = self.output_token_ids[max(begin - prompt_end, 0) : max(end - prompt_end, 0)]
        return output if begin >= prompt_end else self.prompt_token_ids[begin:end] + output

    def samples_at(self, end: int) -> bool:
        return end >= len(self.prompt_token_ids)

    def accept(self, token: int, eos_token_ids: tuple[int, ...]) -> str | None:
        """Append a generated token; the finish reason if it is the last one."""
        may_stop = len(self.output_token_ids) >= self.params.min_tokens
        self.output_token_ids.append(token)
        if may_stop and self._is_stop_token(token, eos_token_ids):
            return "stop"
        return "length" if len(self.output_token_ids) >= self.max_new_tokens else None

    def _is_stop_token(self, token: int, eos_token_ids: tuple[int, ...]) -> bool:
        return token in self.params.stop_token_ids or (not self.params.ignore_eos and token in eos_token_ids)
