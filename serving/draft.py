"""What the scheduler writes down while it plans a step, and what it keeps of it until the result comes."""

from dataclasses import dataclass, field

from splitrank.serving.messages import AdmittedRequest, SequencePlan, SwapPlan
from splitrank.serving.request import Request


@dataclass(slots=True)
class Draft:
    """The step being planned."""

    sequences: list[SequencePlan] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)  # of ``sequences``, in the same order
    admitted: list[AdmittedRequest] = field(default_factory=list)
    swap_out: list[SwapPlan] = field(default_factory=list)
    swap_in: list[SwapPlan] = field(default_factory=list)
    is_short_of_pages: bool = False  # a running request lacked pages: nobody comes in
    is_draining: bool = False  # and those that must give them up are in flight: nobody younger is placed
    num_decodes: int = 0
    num_prefill_tokens: int = 0


@dataclass(slots=True)
class StepInFlight:
    step: int
    requests: list[Request]
    samples: list[bool]


@dataclass(slots=True)
class Counters:
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    aborts: int = 0
