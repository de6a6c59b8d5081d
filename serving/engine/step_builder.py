"""What the scheduler writes down while it plans a step, and what it keeps of it until the result comes."""

from dataclasses import dataclass, field

from splitrank.serving.engine.request import Request
from splitrank.serving.engine.request_columns import Places
from splitrank.serving.protocol.messages import AdmittedRequest, ChunkPlan, NewPages, SwapPlan


@dataclass(slots=True)
class StepBuilder:
    """The step being planned."""

    decoding: list[int] = field(default_factory=list)  # places of requests in ``RequestColumns``
    prefilling: list[Request] = field(default_factory=list)  # of ``chunks``, in the same order
    chunks: list[ChunkPlan] = field(default_factory=list)
    pages: list[NewPages] = field(default_factory=list)
    admitted: list[AdmittedRequest] = field(default_factory=list)
    swap_out: list[SwapPlan] = field(default_factory=list)
    swap_in: list[SwapPlan] = field(default_factory=list)
    is_short_of_pages: bool = False  # a running request lacked pages: nobody comes in
    is_draining: bool = False  # and those that must give them up are in flight: nobody younger is placed
    num_prefill_tokens: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.decoding) + len(self.chunks)


@dataclass(slots=True)
class StepInFlight:
    step: int
    decoding: Places  # places, row for row of the result; then come
    sampled: list[Request]  # those whose prompts end
    unsampled: list[Request]  # in the middle of their prompts: no row of the result


@dataclass(slots=True)
class Counters:
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    aborts: int = 0
