"""A step while the scheduler plans it, and a step in flight, whose result has not come yet."""

from dataclasses import dataclass, field

from splitrank.models.rounding import ceil_div
from splitrank.serving.engine.request import Request
from splitrank.serving.engine.request_columns import Places
from splitrank.serving.protocol.messages import AdmittedRequest, ChunkPlan, NewPages, SwapPlan


def rows_of_step(num_requests: int, num_microbatches: int, step: int) -> int:
    """How many of ``num_requests`` a step computes, at least 1: 6 over 4 stages as 2, 2, 1, 1, and so on. With 2, 2, 2
    one of the four stages would idle."""
    return max(1, ceil_div(num_requests - step % num_microbatches, num_microbatches))


@dataclass(slots=True)
class StepBuilder:
    """The step being planned."""

    decoding: list[int] = field(default_factory=list)  # places of requests in ``RequestColumns``
    prefilling: list[Request] = field(default_factory=list)  # the requests of ``chunks``, in the same order
    chunks: list[ChunkPlan] = field(default_factory=list)
    pages: list[NewPages] = field(default_factory=list)
    admitted: list[AdmittedRequest] = field(default_factory=list)
    swap_out: list[SwapPlan] = field(default_factory=list)
    swap_in: list[SwapPlan] = field(default_factory=list)
    is_short_of_pages: bool = False  # a running request lacked pages: none is swapped in or admitted
    is_draining: bool = False  # those to be swapped out for it are in flight: nothing younger is planned
    num_prefill_tokens: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.decoding) + len(self.chunks)


@dataclass(slots=True)
class StepInFlight:
    step: int
    decoding: Places  # the first rows of the result, in this order
    sampled: list[Request]  # prompts that end in this step: the next rows of the result
    unsampled: list[Request]  # prompts that go on after it: without a row in the result


@dataclass(slots=True)
class Counters:
    """Since the start, by the names of ``EngineStats``."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    aborts: int = 0
