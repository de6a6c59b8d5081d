"""Scheduler and fake model together, step by step."""

from collections import defaultdict, deque

from splitrank.serving.messages import AddRequest, LaunchSpec, RequestOutput, StepPlan, StepResult
from splitrank.serving.sampling_params import SamplingParams
from splitrank.serving.scheduler import Scheduler
from tests.fake_model import FakeModel


class Loop:
    """Scheduler and fake model, with results held back until ``commit``, as a pipeline does."""

    def __init__(self, spec: LaunchSpec, max_in_flight: int = 1) -> None:
        self.spec = spec
        self.scheduler = Scheduler(spec, max_in_flight)
        self.model = FakeModel(spec)
        self.results: deque[StepResult] = deque()
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.ended: dict[str, RequestOutput] = {}

    def add(self, name: str, prompt: list[int], **params: object) -> None:
        self._hear(self.scheduler.add(AddRequest(name, prompt, SamplingParams(**params))))  # type: ignore[arg-type]

    def abort(self, name: str) -> None:
        self._hear(self.scheduler.abort(name))

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.schedule("")
        if plan is not None:
            self.results.append(self.model.execute(plan, ""))
            assert not (plan.swap_out and (plan.swap_in or plan.admitted)), "room is made and given away at once"
            assert not (plan.admitted and self.scheduler.stats().num_preempted), "a new request before a swapped one"
        self.scheduler.check()
        return plan

    def commit(self) -> None:
        for output in self.scheduler.commit(self.results.popleft()):
            self._hear(output)
        self.scheduler.check()

    def run(self) -> None:
        while not self.scheduler.is_idle:
            while self.plan() is not None:
                pass
            self.commit()  # raises if nothing is in flight although requests are open: a deadlock

    def _hear(self, output: RequestOutput | None) -> None:
        if output is None:
            return
        assert output.request_id not in self.ended, "an output after the last one"
        self.tokens[output.request_id] += output.token_ids
        if output.finish_reason is not None:
            self.ended[output.request_id] = output
