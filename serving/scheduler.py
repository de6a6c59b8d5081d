"""Decides what every step computes. Pure Python: no torch, no sockets, no clock; equal calls give equal plans.

Order of a step: decodes, prefill chunks of running requests, then (if nobody lacked pages) requests that
come back from host memory, and last new ones. Smaller request numbers are older; only younger requests are preempted,
so the oldest one always gets on.
"""

from collections import deque
from collections.abc import Iterator

from splitrank.serving.cache import Pool, pages_needed
from splitrank.serving.draft import Counters, Draft, StepInFlight
from splitrank.serving.messages import (
    AddRequest,
    AdmittedRequest,
    EngineStats,
    LaunchSpec,
    RequestOutput,
    RowFailure,
    SequencePlan,
    SnapshotPlan,
    StepPlan,
    StepResult,
    SwapPlan,
    TokenLogprobs,
)
from splitrank.serving.prefix_cache import Match, PrefixCache
from splitrank.serving.request import Request, Status

SampledRow = tuple[int, TokenLogprobs | None, RowFailure | None]


class Scheduler:
    """``max_in_flight`` steps may be planned ahead of their results: pp_size keeps every stage busy, and 1 is the
    simple loop that specifies what any other number must compute."""

    def __init__(self, spec: LaunchSpec, max_in_flight: int) -> None:
        self._spec = spec
        self._max_in_flight = max_in_flight
        self._pages = Pool(spec.num_pages)
        self._slots = Pool(spec.max_running_requests)
        self._prefixes = PrefixCache(spec)
        self._requests: dict[str, Request] = {}  # every open one
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._swapped: dict[int, Request] = {}
        self._in_flight: deque[StepInFlight] = deque()
        self._released: list[int] = []
        self._next_number = 0
        self._next_step = 0
        self._counters = Counters()

    # ------------------------------------------------------------ requests come and go

    def add(self, message: AddRequest) -> RequestOutput | None:
        """Queue a request. An output is a refusal."""
        assert message.request_id not in self._requests, f"request id {message.request_id!r} is already open"
        refusal = self._refuse(message)
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

    def _refuse(self, message: AddRequest) -> RequestOutput | None:
        spec, length = self._spec, len(message.prompt_token_ids)
        if len(self._requests) >= spec.max_running_requests + spec.max_queued_requests:
            running, queued = spec.max_running_requests, spec.max_queued_requests
            text = f"{len(self._requests)} requests are open; the limit is {running} running and {queued} queued"
            return _error(message, "queue_full", text)
        if not length:
            return _error(message, "invalid_request", "the prompt is empty")
        if length >= spec.max_model_len:
            text = f"maximum context length is {spec.max_model_len} tokens, but the prompt has {length} and leaves none"
            return _error(message, "invalid_request", text)
        low, high = min(message.prompt_token_ids), max(message.prompt_token_ids)
        if low < 0 or high >= spec.vocab_size:
            text = f"prompt token ids must be between 0 and {spec.vocab_size - 1}, not {low if low < 0 else high}"
            return _error(message, "invalid_request", text)
        tokens = min(length + message.params.max_tokens, spec.max_model_len) - 1  # the last one is never cached
        if pages_needed(tokens, spec.page_size) > spec.num_pages:
            need = f"{tokens} tokens need {pages_needed(tokens, spec.page_size)} pages of {spec.page_size}"
            return _error(message, "invalid_request", f"the request can never fit: {need}, there are {spec.num_pages}")
        return None

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
        if request.status is Status.RUNNING:
            self._give_back(request)
        self._swapped.pop(request.number, None)
        self._prefixes.forgo(request.branch_digest)
        del self._requests[request.request_id]
        request.status = Status.FINISHED

    def _give_back(self, request: Request) -> None:
        self._pages.free(request.pages)
        self._slots.free([request.slot])
        request.pages, request.slot = [], -1
        del self._running[request.number]

    # ------------------------------------------------------------ plan a step

    def schedule(self, previous_hash: str) -> StepPlan | None:
        """Plan the next step, chained to the plan before it; None (and no change) if nothing can be planned now."""
        if len(self._in_flight) >= self._max_in_flight or self.is_idle:
            return None
        draft = Draft()
        self._plan_decodes(draft)
        self._plan_chunks(draft)
        if not draft.is_short_of_pages:
            self._swap_in(draft)
            if not self._swapped:
                self._admit(draft)
        return self._seal(draft, previous_hash) if draft.sequences else None

    def _plan_decodes(self, draft: Draft) -> None:
        ready = [request for request in self._running.values() if request.is_ready and not request.is_prefilling]
        ready.sort(key=lambda request: (request.last_step, request.number))  # nobody is passed over twice
        limit = self._decode_limit()
        for request in ready:
            if draft.num_decodes < limit and request.status is Status.RUNNING:  # not preempted a moment ago
                self._place(draft, request)

    def _decode_limit(self) -> int:
        """An even share of all decoding requests, so that they fill ``max_in_flight`` microbatches."""
        decoding = sum(not request.is_prefilling and not request.aborted for request in self._running.values())
        return -(-decoding // self._max_in_flight)

    def _plan_chunks(self, draft: Draft) -> None:
        for request in sorted(self._running.values(), key=lambda request: request.number):
            is_due = request.is_ready and request.is_prefilling and request.status is Status.RUNNING
            if is_due and self._chunk_fits(draft, request):
                self._place(draft, request)

    def _chunk_fits(self, draft: Draft, request: Request) -> bool:
        chunk_size = self._spec.chunked_prefill_size
        return draft.num_prefill_tokens + request.next_end(chunk_size) - request.num_scheduled <= chunk_size

    def _swap_in(self, draft: Draft) -> None:
        """Oldest first, and only when its next share has room too."""
        for request in sorted(self._swapped.values(), key=lambda request: request.number):
            if not self._has_room(request.next_end(self._spec.chunked_prefill_size)):
                return
            del self._swapped[request.number]
            self._start_running(request)
            request.pages = self._pages.allocate(pages_needed(request.num_scheduled, self._spec.page_size))
            draft.swap_in.append(SwapPlan(request.number, request.slot, list(request.pages)))
            self._place_if_allowed(draft, request)

    def _place_if_allowed(self, draft: Draft, request: Request) -> None:
        """Its first share may go along in the very step that brings it back."""
        if self._chunk_fits(draft, request) if request.is_prefilling else draft.num_decodes < self._decode_limit():
            self._place(draft, request)

    def _admit(self, draft: Draft) -> None:
        # An even share, as of the decodes: short prompts that all went into one step would leave the other stages idle.
        limit = -(-len(self._requests) // self._max_in_flight)
        while self._waiting and len(draft.sequences) < limit:
            request = self._waiting[0]
            if request.prefix_blocks is None:
                request.prefix_blocks = self._prefixes.blocks(request.prompt_token_ids)
            request.num_scheduled = self._prefixes.peek(request.prefix_blocks, self._next_step)
            if not self._chunk_fits(draft, request) or not self._has_room(len(request.prompt_token_ids)):
                return
            self._waiting.popleft()
            self._start_running(request)
            draft.admitted.append(AdmittedRequest(request.number, request.prompt_token_ids, request.params))
            self._begin(draft, request, self._prefixes.match(request.prefix_blocks, self._next_step))

    def _begin(self, draft: Draft, request: Request, match: Match) -> None:
        """Its first share: from the start, or from a prefix that the ranks remember."""
        request.branch, request.branch_digest = match.branch, match.branch_digest
        request.num_cached = request.num_scheduled
        self._place(draft, request)
        if match.snapshot is not None:
            assert match.snapshot.num_tokens == request.num_cached
            pages = request.pages[: pages_needed(request.num_cached, self._spec.page_size)]
            draft.restored.append(SnapshotPlan(match.snapshot.number, request.slot, pages))
            self._counters.cached_tokens += request.num_cached

    def _has_room(self, num_tokens: int) -> bool:
        """A slot, and pages beside one for each running request.

        That reserve keeps a request from being swapped in only to be swapped out again. With nothing running it is
        0, so a request that fits alone is never kept out for ever.
        """
        spare = self._pages.num_free - len(self._running)
        return self._slots.num_free > 0 and spare >= pages_needed(num_tokens, self._spec.page_size)

    def _start_running(self, request: Request) -> None:
        [request.slot] = self._slots.allocate(1)
        request.status = Status.RUNNING
        self._running[request.number] = request

    def _place(self, draft: Draft, request: Request) -> None:
        """Give the request its next share of this step, if its pages can be had."""
        end = request.next_end(self._spec.chunked_prefill_size)
        missing = pages_needed(end, self._spec.page_size) - len(request.pages)
        if not self._make_room(draft, request, missing):
            return
        request.pages += self._pages.allocate(missing)
        tokens = request.tokens_until(end)
        if request.is_prefilling:
            draft.num_prefill_tokens += len(tokens)
        else:
            draft.num_decodes += 1
        sample = request.samples_at(end)
        sequence = SequencePlan(
            request.number, request.slot, request.num_scheduled, tokens, list(request.pages), sample
        )
        draft.sequences.append(sequence)
        draft.requests.append(request)
        request.num_scheduled = end
        request.num_in_flight += 1
        request.last_step = self._next_step
        if end == request.branch:
            self._save(draft, request)

    def _save(self, draft: Draft, request: Request) -> None:
        """The step leaves the request where its prompt and another one part: the ranks keep a copy."""
        snapshot, dropped = self._prefixes.keep(request.branch_digest, request.branch, self._next_step)
        draft.saved.append(SnapshotPlan(snapshot.number, request.slot, list(request.pages)))
        draft.dropped += dropped
        request.branch_digest = b""

    # ------------------------------------------------------------ preemption

    def _make_room(self, draft: Draft, request: Request, missing: int) -> bool:
        """Swap out younger requests until ``missing`` pages are free; none if even all of them are not enough."""
        if self._pages.num_free >= missing:
            return True
        draft.is_short_of_pages = True
        victims: list[Request] = []
        free = self._pages.num_free
        for victim in self._victims(request):
            victims.append(victim)
            free += len(victim.pages)
            if free >= missing:
                break
        else:
            return False
        for victim in victims:
            self._swap_out(draft, victim)
        return True

    def _victims(self, request: Request) -> Iterator[Request]:
        """Youngest first. A request in flight, which includes this draft, keeps its pages."""
        for victim in sorted(self._running.values(), key=lambda running: -running.number):
            if victim.number > request.number and not victim.num_in_flight:
                yield victim

    def _swap_out(self, draft: Draft, victim: Request) -> None:
        # All its pages hold computed tokens: pages come with the share that fills them, and none is in flight.
        draft.swap_out.append(SwapPlan(victim.number, victim.slot, list(victim.pages)))
        self._give_back(victim)
        victim.status = Status.SWAPPED
        self._swapped[victim.number] = victim
        self._counters.preemptions += 1

    def _seal(self, draft: Draft, previous_hash: str) -> StepPlan:
        samples = [sequence.sample for sequence in draft.sequences]
        self._in_flight.append(StepInFlight(self._next_step, draft.requests, samples))
        plan = StepPlan(
            step=self._next_step,
            previous_hash=previous_hash,
            sequences=draft.sequences,
            admitted=draft.admitted,
            released=self._released,
            swap_out=draft.swap_out,
            swap_in=draft.swap_in,
            restored=draft.restored,
            saved=draft.saved,
            dropped=draft.dropped,
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
            return _error(request, failure.code, failure.reason)
        self._counters.generated_tokens += 1
        reason = request.accept(token, self._spec.eos_token_ids)
        if reason is not None:
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
        counters = self._counters
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_preempted=len(self._swapped),
            free_pages=self._pages.num_free,
            num_pages=self._pages.size,
            free_slots=self._slots.num_free,
            num_slots=self._slots.size,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            generated_tokens=counters.generated_tokens,
            preemptions=counters.preemptions,
            aborts=counters.aborts,
        )

    def check(self) -> None:
        """Integrity: every page and slot is free or has one owner, and every request is in exactly one place."""
        running = list(self._running.values())
        self._pages.check([page for request in running for page in request.pages])
        self._slots.check([request.slot for request in running])
        places = [*self._waiting, *running, *self._swapped.values()]
        assert sorted(id(one) for one in places) == sorted(id(one) for one in self._requests.values())
        for request in running:
            held = pages_needed(request.num_scheduled, self._spec.page_size)
            assert len(request.pages) == held, f"request {request.number} holds {len(request.pages)} pages, not {held}"
            in_flight = sum(request in step.requests for step in self._in_flight)
            assert request.num_in_flight == in_flight, f"request {request.number} miscounts its steps in flight"
        assert all(one.slot < 0 and not one.pages and not one.num_in_flight for one in self._swapped.values())


def _error(request: AddRequest | Request, code: str, text: str) -> RequestOutput:
    return RequestOutput(
        request_id=request.request_id, token_ids=[], finish_reason="error", error=text, error_code=code
    )
