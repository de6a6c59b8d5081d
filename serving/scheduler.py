"""Decides what every step computes. Pure Python: no torch, no sockets, no clock; equal calls give equal plans.

A step is filled in this order:
1. running requests, oldest first: one token for each that decodes, the next chunk for each in its prompt. Decodes are
   shared out evenly over the steps in flight; chunks together have at most ``chunked_prefill_size`` tokens;
2. swapped-out requests, oldest first;
3. new requests, in order of arrival.
2 and 3 are left out when a running request found no KV pages; then the youngest running ones are swapped out for it
(``residents.py``). So the order of age is never broken: running requests are older than swapped ones, those older than
waiting ones, and no request gets a page that an older one was refused and could have had.
"""

from collections import deque

from splitrank.serving.admission import error_output, refuse
from splitrank.serving.draft import Counters, Draft, StepInFlight
from splitrank.serving.messages import (
    AddRequest,
    AdmittedRequest,
    EngineStats,
    LaunchSpec,
    RequestOutput,
    RowFailure,
    SequencePlan,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from splitrank.serving.request import Request, Status
from splitrank.serving.residents import Residents
from splitrank.serving.snapshots import Snapshots

SampledRow = tuple[int, TokenLogprobs | None, RowFailure | None]


class Scheduler:
    """``max_in_flight`` steps may be planned ahead of their results: pp_size keeps every stage busy, and 1 is the
    simple loop that specifies what any other number must compute."""

    def __init__(self, spec: LaunchSpec, max_in_flight: int) -> None:
        self._spec = spec
        self._max_in_flight = max_in_flight
        self._residents = Residents(spec)
        self._snapshots = Snapshots(spec)
        self._requests: dict[str, Request] = {}  # every open one
        self._waiting: deque[Request] = deque()
        self._in_flight: deque[StepInFlight] = deque()
        self._released: list[int] = []
        self._next_number = 0
        self._next_step = 0
        self._counters = Counters()

    # ------------------------------------------------------------ requests come and go

    def add(self, message: AddRequest) -> RequestOutput | None:
        """Queue a request. An output is a refusal."""
        assert message.request_id not in self._requests, f"request id {message.request_id!r} is already open"
        refusal = refuse(self._spec, message, len(self._requests))
        if refusal is not None:
            return refusal
        prompt = message.prompt_token_ids
        max_new_tokens = min(message.params.max_tokens, self._spec.max_model_len - len(prompt))
        request = Request(self._next_number, message.request_id, prompt, message.params, max_new_tokens)
        self._next_number += 1
        self._requests[request.request_id] = request
        self._waiting.append(request)
        return None

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request in any phase. None: it is already over, or ends with the commit of its steps in flight."""
        request = self._requests.get(request_id)
        if request is None or request.aborted:
            return None
        request.aborted = True
        self._counters.aborts += 1
        return None if request.num_in_flight else self._finish_aborted(request)

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def _finish_aborted(self, request: Request) -> RequestOutput:
        self._finish(request)
        return RequestOutput(request_id=request.request_id, token_ids=[], finish_reason="abort")

    def _finish(self, request: Request) -> None:
        """Everything it owns goes back, exactly once; ranks that know it hear of it with the next plan."""
        assert request.num_in_flight == 0, "a request in flight cannot be finished"
        if request.status is Status.WAITING:
            self._waiting.remove(request)
        else:
            self._released.append(request.number)
            self._residents.release(request)
        self._snapshots.forget(request)
        del self._requests[request.request_id]
        request.status = Status.FINISHED

    # ------------------------------------------------------------ plan a step

    def schedule(self, previous_hash: str) -> StepPlan | None:
        """Plan the next step, chained to the plan before it; None (and no change) if nothing can be planned now.

        When the last request has ended, one more plan, without sequences, tells the ranks to let go of it.
        """
        if len(self._in_flight) >= self._max_in_flight:
            return None
        draft = Draft()
        self._plan_running(draft)
        if not draft.is_short_of_pages:
            self._swap_in(draft)
            if not self._residents.swapped:
                self._admit(draft)
        return self._seal(draft, previous_hash) if draft.sequences or (self.is_idle and self._released) else None

    def _plan_running(self, draft: Draft) -> None:
        running = [request for request in self._residents.by_age() if request.is_ready]
        decodes = [request for request in running if not request.is_prefilling]
        decodes.sort(key=lambda request: request.last_step)  # nobody is passed over twice
        limit = self._decode_limit()
        due = {request.number for request in decodes[:limit]}
        for request in running:
            if self._chunk_fits(draft, request) if request.is_prefilling else request.number in due:
                self._place(draft, request)
        for request in decodes[limit:]:  # in place of those that found no pages
            if draft.num_decodes < limit:
                self._place(draft, request)

    def _decode_limit(self) -> int:
        """An even share of all decoding requests, so that they fill ``max_in_flight`` microbatches."""
        running = self._residents.running.values()
        decoding = sum(not request.is_prefilling and not request.aborted for request in running)
        return -(-decoding // self._max_in_flight)

    def _chunk_fits(self, draft: Draft, request: Request) -> bool:
        chunk_size = self._spec.chunked_prefill_size
        return draft.num_prefill_tokens + request.next_end(chunk_size) - request.num_scheduled <= chunk_size

    def _swap_in(self, draft: Draft) -> None:
        """Oldest first, and only when its next share, and the rest of its prompt, have room too."""
        for number in sorted(self._residents.swapped):
            request = self._residents.swapped[number]
            end = max(request.next_end(self._spec.chunked_prefill_size), len(request.prompt_token_ids))
            if not self._residents.has_room(end):
                return
            self._residents.swap_in(draft, request)
            # Its first share may go along in the very step that brings it back.
            if self._chunk_fits(draft, request) if request.is_prefilling else draft.num_decodes < self._decode_limit():
                self._place(draft, request)

    def _admit(self, draft: Draft) -> None:
        # An even share, as of the decodes: short prompts that all went into one step would leave the other stages idle.
        limit = -(-len(self._requests) // self._max_in_flight)
        while self._waiting and len(draft.sequences) < limit:
            request = self._waiting[0]
            if not self._residents.has_room(len(request.prompt_token_ids)):
                return
            request.num_scheduled = self._snapshots.cached_tokens(request, self._next_step)
            if not self._chunk_fits(draft, request):
                return
            self._waiting.popleft()
            self._residents.start(request)
            draft.admitted.append(AdmittedRequest(request.number, request.prompt_token_ids, request.params))
            request.num_cached = request.num_scheduled
            self._counters.cached_tokens += request.num_cached
            self._snapshots.admit(request)
            self._place(draft, request)

    def _place(self, draft: Draft, request: Request) -> None:
        """Give the request its next share of this step, if its pages can be had."""
        if draft.is_draining or request.status is not Status.RUNNING:  # preempted a moment ago, for an older one
            return
        start, end = request.num_scheduled, request.next_end(self._spec.chunked_prefill_size)
        if not self._residents.grow(draft, request, end):
            return
        tokens, is_chunk = request.tokens_between(start, end), request.is_prefilling
        sample = request.samples_at(end)
        draft.sequences.append(SequencePlan(request.number, request.slot, start, tokens, list(request.pages), sample))
        draft.requests.append(request)
        request.num_scheduled = end
        request.num_in_flight += 1
        request.last_step = self._next_step
        if is_chunk:
            draft.num_prefill_tokens += len(tokens)
            self._snapshots.placed(request, self._next_step)
        else:
            draft.num_decodes += 1

    def _seal(self, draft: Draft, previous_hash: str) -> StepPlan:
        samples = [sequence.sample for sequence in draft.sequences]
        self._in_flight.append(StepInFlight(self._next_step, draft.requests, samples))
        snapshots = self._snapshots.take_news()
        plan = StepPlan(
            step=self._next_step,
            previous_hash=previous_hash,
            sequences=draft.sequences,
            admitted=draft.admitted,
            released=self._released,
            swap_out=draft.swap_out,
            swap_in=draft.swap_in,
            kept=snapshots.kept,
            restored=snapshots.restored,
            saved=snapshots.saved,
            dropped=snapshots.dropped,
        )
        self._released = []
        self._next_step += 1
        self._counters.steps += 1
        self._counters.prompt_tokens += draft.num_prefill_tokens
        return plan

    # ------------------------------------------------------------ take a result

    def commit(self, result: StepResult) -> list[RequestOutput]:
        """Take the tokens of the oldest step in flight; returns what its requests hear."""
        step = self._in_flight.popleft()
        assert result.step == step.step, f"result of step {result.step}, but step {step.step} is due"
        expected = sum(step.samples)
        assert len(result.token_ids) == len(result.logprobs) == expected, (
            f"step {step.step} samples {expected} tokens, its result has {len(result.token_ids)} tokens "
            f"and {len(result.logprobs)} logprobs"
        )
        failures = [result.failures.get(row) for row in range(expected)]
        rows = iter(zip(result.token_ids, result.logprobs, failures, strict=True))
        outputs = []
        for request, sample in zip(step.requests, step.samples, strict=True):
            request.num_in_flight -= 1
            row = next(rows) if sample else None
            output = self._commit_row(request, row)
            if output is not None:
                outputs.append(output)
        return outputs

    def _commit_row(self, request: Request, row: SampledRow | None) -> RequestOutput | None:
        if request.aborted:
            return None if request.num_in_flight else self._finish_aborted(request)
        if row is None:
            return None
        token, logprobs, failure = row
        if failure is not None:
            self._finish(request)
            return error_output(request.request_id, failure.code, failure.reason)
        self._counters.generated_tokens += 1
        reason = request.accept(token, self._spec.eos_token_ids)
        if reason is not None:
            self._snapshots.keep_answer(request, self._next_step)
            self._finish(request)
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[token],
            logprobs=None if logprobs is None else [logprobs],
            finish_reason=reason,
            stop_token_id=token if reason == "stop" else None,
            num_cached_tokens=request.num_cached,
        )

    # ------------------------------------------------------------ looking in

    def stats(self) -> EngineStats:
        counters, residents = self._counters, self._residents
        return EngineStats(
            num_running=len(residents.running),
            num_waiting=len(self._waiting),
            num_preempted=len(residents.swapped),
            free_pages=residents.pages.num_free,
            num_pages=residents.pages.size,
            free_slots=residents.slots.num_free,
            num_slots=residents.slots.size,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            preemptions=residents.num_preemptions,
            aborts=counters.aborts,
        )

    def check(self) -> None:
        """Integrity: every request is in exactly one place, in the order of age, and owns what it should."""
        residents = self._residents
        places = [*residents.running.values(), *residents.swapped.values(), *self._waiting]
        assert sorted(id(one) for one in places) == sorted(id(one) for one in self._requests.values())
        waiting = [request.number for request in self._waiting]
        assert waiting == sorted(waiting)
        admitted = max([*residents.running, *residents.swapped], default=-1)
        assert not waiting or admitted < waiting[0], "an older request has been passed over"
        residents.check()
        self._snapshots.check({request.number for request in self._requests.values()})
        for request in residents.running.values():
            in_flight = sum(request in step.requests for step in self._in_flight)
            assert request.num_in_flight == in_flight, f"request {request.number} miscounts its steps in flight"
