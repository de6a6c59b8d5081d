"""Scheduler and fake model, or a real worker, together, step by step."""

from collections import defaultdict, deque
from typing import Protocol

from splitrank.serving.engine.scheduler import Scheduler
from splitrank.serving.protocol.messages import AddRequest, LaunchSpec, RequestOutput, StepPlan, StepResult
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.support.fake_model import FakeModel, Span


class Executor(Protocol):
    def execute(self, plan: StepPlan, plan_hash: str, /) -> StepResult | None: ...


class Loop:
    """Scheduler and fake model, with results held back until ``commit``, as a pipeline does."""

    def __init__(
        self, spec: LaunchSpec, num_microbatches: int = 1, executor: Executor | None = None, plans_ahead: bool = False
    ) -> None:
        self.spec = spec
        self.scheduler = Scheduler(spec, num_microbatches, plans_ahead)
        self.model = FakeModel(spec)
        self.executor = executor or self.model
        self.results: deque[StepResult] = deque()
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.digests: dict[str, list[bytes]] = defaultdict(list)
        self.ended: dict[str, RequestOutput] = {}
        self.spans: dict[int, list[Span]] = {}  # what each step has computed: decodes, then chunks

    def add(self, name: str, prompt: list[int], **params: object) -> None:
        self._hear(self.scheduler.add(AddRequest(name, prompt, SamplingParams(**params))))  # type: ignore[arg-type]

    def abort(self, name: str) -> None:
        self._hear(self.scheduler.abort(name))

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.schedule("")
        if plan is not None:
            result = self.executor.execute(plan, "")
            assert result is not None
            self.results.append(result)
            self.spans[plan.step] = self.model.spans
            assert not (plan.swap_out and (plan.swap_in or plan.admitted)), "room is made and given away at once"
            swapped = self.scheduler._residents.next_swapped
            admitted = [(one.params.priority, one.request_number) for one in plan.admitted]
            assert swapped is None or all(order < swapped.order for order in admitted), (
                "a new request before a swapped one"
            )
        self.scheduler.check()
        return plan

    def commit(self) -> None:
        for output in self.scheduler.commit(self.results.popleft()).all():
            self._hear(output)
        self.scheduler.check()

    def run(self) -> None:
        """Until nothing is open, and the ranks have heard of it."""
        while self.plan() is not None or self.results:
            while self.plan() is not None:
                pass
            self.commit()
        assert self.scheduler.is_idle, "a deadlock: nothing is in flight and nothing can be planned"

    def _hear(self, output: RequestOutput | None) -> None:
        if output is None:
            return
        assert output.request_id not in self.ended, "an output after the last one"
        self.tokens[output.request_id] += output.token_ids
        self.digests[output.request_id] += output.digests
        if output.finish_reason is not None:
            self.ended[output.request_id] = output
