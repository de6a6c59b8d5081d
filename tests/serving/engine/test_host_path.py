"""Host work of a decode step of many requests, in bytes and calls: neither may grow with what did not change.

A call is anything that Python's profiler reports, of Python or of C. Times are in ``scripts/bench_host_path.py``.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from splitrank.serving.engine.scheduler import Scheduler
from splitrank.serving.protocol.messages import AddRequest, StepOutputs, StepPlan, StepResult
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.wire import encode
from tests.support.fake_model import small_spec

NUM_REQUESTS, PAGE_SIZE = 256, 64


def count_calls(action: Callable[[], Any]) -> tuple[Any, int]:
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        result = action()
    finally:
        sys.setprofile(None)
    return result, count


class SteadyState:
    """A scheduler whose requests all decode, with prompts of all lengths modulo a page."""

    def __init__(self, context: int) -> None:
        sizes = {"max_model_len": context + 500, "page_size": PAGE_SIZE, "chunked_prefill_size": 2**24}
        num_pages = NUM_REQUESTS * (context // PAGE_SIZE + 9)
        spec = small_spec(**sizes, num_pages=num_pages, max_running_requests=NUM_REQUESTS, vocab_size=50)
        self.scheduler = Scheduler(spec, 1, plans_ahead=True)
        for number in range(NUM_REQUESTS):
            prompt = [number % 50] * (context - number % PAGE_SIZE)
            self.scheduler.add(AddRequest(str(number), prompt, SamplingParams(max_tokens=400)))
        while (plan := self.step()[0]).chunks:
            pass
        assert len(plan.decodes) == NUM_REQUESTS

    def step(self) -> tuple[StepPlan, StepOutputs, int]:
        """A plan, what its requests hear, and the calls of making both."""
        plan, planning = count_calls(lambda: self.scheduler.schedule(16 * "0"))
        num_sampled = len(plan.decodes) + sum(chunk.sample for chunk in plan.chunks)
        result = StepResult(plan.step, "", [7] * num_sampled)
        outputs, committing = count_calls(lambda: self.scheduler.commit(result))
        return plan, outputs, planning + committing


@pytest.mark.parametrize("context", [2000, 8000])
def test_a_step_of_decodes_costs_little_whatever_the_context(context: int) -> None:
    steady = SteadyState(context)
    steps = [steady.step() for _ in range(PAGE_SIZE)]
    assert max(len(encode(plan)) for plan, _, _ in steps) < 1024
    # Each request appends its token: one call. Four of 256 begin a page, which is looked at one by one.
    assert max(calls for _, _, calls in steps) < 2 * NUM_REQUESTS
    for _, outputs, _ in steps:
        assert (outputs.token_ids, outputs.others) == ([7] * NUM_REQUESTS, [])
        assert outputs.request_ids == [str(number) for number in range(NUM_REQUESTS)]
    assert sum(len(plan.pages) for plan, _, _ in steps) == NUM_REQUESTS  # one page each in as many steps
