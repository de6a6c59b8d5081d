"""Decides what every step computes. Pure Python: no torch, no sockets, no clock; equal calls give equal plans.

A step is filled in this order:
1. running requests, oldest first: one token for each that decodes, the next prefill chunk for each other. Decodes are
   spread evenly over the microbatches; the chunks of a step have at most ``max_prefill_tokens`` tokens together;
2. swapped-out and new requests, oldest first, until one has no room.
2 is skipped when a running request found no free KV pages; then the youngest running requests are swapped out
(``residents.py``). Age is the order of priority, then of arrival. So running requests are always older than swapped
ones, and of one priority, swapped ones are older than waiting ones. No request gets a page that an older one asked for
and could have used. A running request gives its slot up for none that comes later, whatever the priority.
"""

from collections import deque
from dataclasses import asdict
from itertools import count

import numpy as np

from splitrank.models.rounding import pages_needed
from splitrank.serving.engine.admission import error_output, refuse
from splitrank.serving.engine.request import Request, Status
from splitrank.serving.engine.request_columns import Flags, Places, RequestColumns
from splitrank.serving.engine.residents import Residents
from splitrank.serving.engine.snapshots import Snapshots
from splitrank.serving.engine.step_builder import Counters, StepBuilder, StepInFlight, rows_of_step
from splitrank.serving.engine.waiting import WaitingRequests
from splitrank.serving.protocol.messages import (
    AddRequest,
    AdmittedRequest,
    ChunkPlan,
    EngineStats,
    LaunchSpec,
    RequestOutput,
    StepOutputs,
    StepPlan,
    StepResult,
)


class Scheduler:
    """Spreads the running requests over ``num_microbatches``, one for each pipeline stage.

    The simple loop keeps ``num_microbatches`` steps in flight, and plans a decode when its input token is known. It is
    the specification of the other loop. With ``plans_ahead``, one more step is in flight, and a decode is planned while
    its input token is still being sampled. Then a request that stops has one row too many in flight. The token of that
    row is dropped, and the pages and the slot of the request are freed when that step is committed.
    """

    def __init__(self, spec: LaunchSpec, num_microbatches: int, plans_ahead: bool = False) -> None:
        self._spec = spec
        self._num_microbatches, self._plans_ahead = num_microbatches, plans_ahead
        self._max_in_flight = num_microbatches + plans_ahead
        self._columns = RequestColumns()
        self._residents = Residents(spec, self._columns)
        self._snapshots = Snapshots(spec)
        self._requests: dict[str, Request] = {}  # every open one
        self._waiting = WaitingRequests()
        self._in_flight: deque[StepInFlight] = deque()
        self._released: list[int] = []
        self._num_ended = 0  # open requests whose last output was sent, but that a step in flight still computes
        self._numbers = count()
        self._next_step = 0
        self._counters = Counters()

    # ------------------------------------------------------------ requests come and go

    def add(self, message: AddRequest, held: bool = False) -> RequestOutput | None:
        """Queues a request; a ``held`` one joins the queue with ``join``. Returns the refusal if it is not taken."""
        assert message.request_id not in self._requests, f"request id {message.request_id!r} is already open"
        refusal = refuse(self._spec, message, len(self._requests) - self._num_ended)
        if refusal is not None:
            return refusal
        prompt = message.prompt_token_ids
        max_new_tokens = min(message.params.max_tokens, self._spec.max_model_len - len(prompt))
        number = next(self._numbers)
        request = Request(number, message.request_id, prompt, message.params, max_new_tokens, self._columns)
        self._requests[request.request_id] = request
        (self._waiting.hold if held else self._waiting.add)(request)
        return None

    def join(self, request_id: str) -> None:
        """A request that was held joins the queue, unless it has ended since."""
        self._waiting.join(request_id, self._numbers)

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request in any state. Returns None if it has ended before, or if its steps in flight come first."""
        request = self._requests.get(request_id)
        if request is None or request.is_over:
            return None
        request.abort()
        self._counters.aborts += 1
        return None if request.num_in_flight else self._finish_aborted(request)

    def names_of(self, admitted: list[AdmittedRequest]) -> list[str]:
        """The request ids of those that the last plan admits."""
        return [self._residents.running[one.request_number].request_id for one in admitted]

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def _finish_aborted(self, request: Request) -> RequestOutput:
        self._finish(request)
        return RequestOutput(request.request_id, [], finish_reason="abort")

    def _finish(self, request: Request) -> None:
        """Frees everything that the request owns, exactly once. The next plan tells the ranks to release it."""
        assert request.num_in_flight == 0, "a request in flight cannot be finished"
        self._num_ended -= request.ended
        if request.was_regular:
            self._snapshots.keep_answer(request, self._next_step)
        if request.status is Status.WAITING:
            self._waiting.remove(request)
        else:
            self._released.append(request.number)
            self._residents.release(request)
        self._snapshots.forget(request)
        del self._requests[request.request_id]
        self._columns.remove(request.place)
        request.status = Status.FINISHED

    # ------------------------------------------------------------ plan a step

    def schedule(self, previous_hash: str) -> StepPlan | None:
        """Plans the next step, chained to the plan before it. Returns None, and changes nothing, if there is none.

        When the last request has ended, one more plan without rows tells the ranks to release it.
        """
        if len(self._in_flight) >= self._max_in_flight:
            return None
        builder = StepBuilder()
        self._plan_running(builder)
        if not builder.is_short_of_pages:
            self._bring_in(builder)
            if not builder.num_rows and self._num_microbatches > 1:
                self._plan_running(builder, may_wait=True)
        return self._seal(builder, previous_hash) if builder.num_rows or (self.is_idle and self._released) else None

    def _plan_running(self, builder: StepBuilder, may_wait: bool = False) -> None:
        """Plans the running requests. Unless the step ``may_wait``, decodes are left out whose input token one of the
        last ``pp - 1`` steps has still to sample: the first stage would wait for that token until the last stage has
        ended, and the stages would compute one after the other."""
        columns = self._columns
        places = self._residents.places
        ready = places[columns.is_ready(places, self._plans_ahead)]
        is_decoding = columns.is_decoding(ready)
        limit = self._decode_limit()
        decoding = ready[is_decoding]
        if not may_wait:
            decoding = decoding[~columns.is_in_flight_since(decoding, self._next_step - self._num_microbatches + 1)]
        due, later = self._due(decoding, limit)
        prefilling = columns.at(ready[~is_decoding])
        if self._pages_suffice(due, prefilling):
            self._plan_decodes(builder, due)
            for request in prefilling:
                if self._chunk_fits(builder, request):
                    self._plan_request(builder, request)
        else:
            self._plan_by_age(builder, columns.at(ready), set(due.tolist()), later, limit)

    def _due(self, decoding: Places, limit: int) -> tuple[Places, Places]:
        """The ``limit`` decodes that have waited longest, by age, and the others. So none is passed over twice."""
        if len(decoding) <= limit:
            return decoding, decoding[:0]
        by_wait = np.argsort(self._columns.last_step[decoding], kind="stable")
        return decoding[np.sort(by_wait[:limit])], decoding[by_wait[limit:]]

    def _pages_suffice(self, due: Places, prefilling: list[Request]) -> bool:
        page_size, chunk_size = self._spec.page_size, self._spec.chunked_prefill_size
        missing = int(self._columns.lacks_page(due, page_size).sum())
        missing += sum(pages_needed(one.next_end(chunk_size), page_size) - one.num_pages for one in prefilling)
        return missing <= self._residents.pages.num_free

    def _plan_decodes(self, builder: StepBuilder, due: Places) -> None:
        """Plans all of them; pages suffice. Only requests that begin a page are handled one by one."""
        columns = self._columns
        for request in columns.at(due[columns.lacks_page(due, self._spec.page_size)]):
            self._residents.add_pages(builder, request, 1)
        columns.note_decodes(due, self._next_step)
        builder.decoding += due.tolist()

    def _plan_by_age(
        self, builder: StepBuilder, ready: list[Request], due: set[int], later: Places, limit: int
    ) -> None:
        """Pages do not suffice: plans requests one by one, oldest first, and swaps younger ones out for them."""
        for request in ready:
            if self._chunk_fits(builder, request) if request.is_prefilling else request.place in due:
                self._plan_request(builder, request)
        for request in self._columns.at(later):  # take the rows of those that found no pages
            if len(builder.decoding) < limit:
                self._plan_request(builder, request)

    def _decode_limit(self) -> int:
        decoding = int(self._columns.is_decoding(self._residents.places).sum())
        return rows_of_step(decoding, self._num_microbatches, self._next_step)

    def _chunk_fits(self, builder: StepBuilder, request: Request) -> bool:
        num_tokens = request.next_end(self._spec.chunked_prefill_size) - request.num_scheduled
        return builder.num_prefill_tokens + num_tokens <= self._spec.max_prefill_tokens

    def _bring_in(self, builder: StepBuilder) -> None:
        """Swapped-out and waiting requests, oldest first, until one has no room."""
        # Short prompts are spread like decodes. If all went into one step, the other stages would idle.
        limit = rows_of_step(len(self._requests) - self._num_ended, self._num_microbatches, self._next_step)
        has_come_in = True
        while has_come_in:
            swapped = self._residents.next_swapped
            waiting = self._waiting.first
            if swapped is not None and (waiting is None or swapped.order < waiting.order):
                has_come_in = self._swap_in(builder, swapped)
            else:
                has_come_in = waiting is not None and builder.num_rows < limit and self._admit(builder, waiting)

    def _swap_in(self, builder: StepBuilder, request: Request) -> bool:
        """Only when there is room for its next chunk or token and for the rest of its prompt."""
        end = max(request.next_end(self._spec.chunked_prefill_size), len(request.prompt_token_ids))
        if not self._residents.has_room(end):
            return False
        self._residents.swap_in(builder, request)
        # The step that swaps it in may compute its next chunk or token already.
        has_row = len(builder.decoding) < self._decode_limit()
        if self._chunk_fits(builder, request) if request.is_prefilling else has_row:
            self._plan_request(builder, request)
        return True

    def _admit(self, builder: StepBuilder, request: Request) -> bool:
        """The first of those that wait."""
        if not self._residents.has_room(len(request.prompt_token_ids)):
            return False
        request.num_scheduled = self._snapshots.cached_tokens(request, self._next_step)
        if not self._chunk_fits(builder, request):
            return False
        self._waiting.remove(request)
        self._residents.start(request)
        request.num_cached = request.num_scheduled
        builder.admitted.append(
            AdmittedRequest(request.slot, request.number, request.prompt_token_ids, request.params, request.num_cached)
        )
        self._counters.cached_tokens += request.num_cached
        self._snapshots.admit(request)
        self._plan_request(builder, request)
        return True

    def _plan_request(self, builder: StepBuilder, request: Request) -> None:
        """Plans the next chunk or token of the request, if it can get the pages."""
        if builder.is_draining or request.status is not Status.RUNNING:  # or it was just swapped out for an older one
            return
        end, is_chunk = request.next_end(self._spec.chunked_prefill_size), request.is_prefilling
        if not self._residents.grow(builder, request, end):
            return
        num_tokens = end - request.num_scheduled
        request.note_planned(end, self._next_step)
        if not is_chunk:
            builder.decoding.append(request.place)
            return
        builder.prefilling.append(request)
        builder.chunks.append(ChunkPlan(request.slot, num_tokens, sample=not request.is_prefilling))
        builder.num_prefill_tokens += num_tokens
        self._snapshots.note_planned(request, self._next_step)

    def _seal(self, builder: StepBuilder, previous_hash: str) -> StepPlan:
        chunks = list(zip(builder.prefilling, builder.chunks, strict=True))
        sampled = [request for request, chunk in chunks if chunk.sample]
        unsampled = [request for request, chunk in chunks if not chunk.sample]
        decoding = np.array(builder.decoding, dtype=np.int64)
        self._in_flight.append(StepInFlight(self._next_step, decoding, sampled, unsampled))
        snapshots = self._snapshots.take_changes()
        plan = StepPlan(
            step=self._next_step,
            previous_hash=previous_hash,
            decodes=self._columns.slot[decoding].tolist(),
            chunks=builder.chunks,
            pages=builder.pages,
            admitted=builder.admitted,
            released=self._released,
            swap_out=builder.swap_out,
            swap_in=builder.swap_in,
            kept=snapshots.kept,
            restored=snapshots.restored,
            saved=snapshots.saved,
            dropped=snapshots.dropped,
        )
        self._released = []
        self._next_step += 1
        self._counters.steps += 1
        self._counters.prompt_tokens += builder.num_prefill_tokens
        return plan

    # ------------------------------------------------------------ take a result

    def commit(self, result: StepResult) -> StepOutputs:
        """Takes the result of the oldest step in flight; returns the outputs of its requests."""
        step = self._in_flight.popleft()
        assert result.step == step.step, f"result of step {result.step}, but step {step.step} is due"
        num_decodes, expected = len(step.decoding), len(step.decoding) + len(step.sampled)
        found = len(result.token_ids)
        assert found == expected, f"step {step.step} samples {expected} tokens, its result has {found}"
        self._columns.in_flight[step.decoding] -= 1
        is_special = self._is_special(step.decoding, result)
        ids, tokens = self._commit_plain(step.decoding, result.token_ids[:num_decodes], is_special)
        special = zip(self._columns.at(step.decoding[is_special]), is_special.nonzero()[0].tolist(), strict=True)
        rows: list[tuple[Request, int | None]] = [*special]
        chunks: list[tuple[Request, int | None]] = [*zip(step.sampled, range(num_decodes, expected), strict=True)]
        chunks += [(request, None) for request in step.unsampled]
        for request, _ in chunks:
            request.num_in_flight -= 1
        outputs = [self._commit_row(request, row, result) for request, row in rows + chunks]
        digests = [digest for digest, special in zip(result.digests, is_special, strict=False) if not special]
        return StepOutputs(ids, tokens, [output for output in outputs if output is not None], digests)

    def _is_special(self, places: Places, result: StepResult) -> Flags:
        """Decodes that are more than one token of a running request: it may end, has ended, failed, or has logprobs."""
        columns, tokens = self._columns, np.array(result.token_ids[: len(places)], dtype=np.int64)
        is_special = columns.over[places] | columns.has_stops[places] | columns.is_last_by_length(places)
        for stop in self._spec.eos_token_ids:
            is_special |= tokens == stop
        for row in (*result.logprobs, *result.failures):
            if row < len(places):
                is_special[row] = True
        return is_special

    def _commit_plain(self, places: Places, tokens: list[int], is_special: Flags) -> tuple[list[str], list[int]]:
        """Request ids and tokens of all rows that are not special."""
        if is_special.any():
            places = places[~is_special]
            tokens = [token for token, special in zip(tokens, is_special.tolist(), strict=True) if not special]
        self._columns.num_output[places] += 1
        self._counters.generated_tokens += len(tokens)
        requests = self._columns.at(places)
        for request, token in zip(requests, tokens, strict=True):
            request.output_token_ids.append(token)
        return [request.request_id for request in requests], tokens

    def _commit_row(self, request: Request, row: int | None, result: StepResult) -> RequestOutput | None:
        """``row`` of the result; None for a chunk that does not end its prompt."""
        if request.aborted:
            return None if request.num_in_flight else self._finish_aborted(request)
        of_prompt = result.prompt_logprobs.get(request.number)
        if row is None:
            return None if of_prompt is None else RequestOutput(request.request_id, [], prompt_logprobs=of_prompt)
        token, logprobs, failure = result.token_ids[row], result.logprobs.get(row), result.failures.get(row)
        if request.ended:  # this row was planned before the request's last token was known
            request.was_regular &= failure is None  # a state that holds NaN is not kept as a snapshot
            self._finish(request)
            return None
        if failure is not None:
            self._end(request, is_regular=False)
            return error_output(request.request_id, failure.code, failure.reason)
        self._counters.generated_tokens += 1
        reason = request.accept(token, self._spec.eos_token_ids)
        if reason is not None:
            self._end(request, is_regular=True)
        return RequestOutput(
            request_id=request.request_id,
            token_ids=[token],
            logprobs=None if logprobs is None else [logprobs],
            finish_reason=reason,
            stop_token_id=token if reason == "stop" else None,
            num_cached_tokens=request.num_cached,
            prompt_logprobs=of_prompt,
            digests=result.digests[row : row + 1],
        )

    def _end(self, request: Request, is_regular: bool) -> None:
        """The caller sends its last output. What it owns is freed when no step in flight computes it any more."""
        request.end(is_regular)
        self._num_ended += 1
        if not request.num_in_flight:
            self._finish(request)

    # ------------------------------------------------------------ statistics and checks

    def stats(self) -> EngineStats:
        residents = self._residents
        return EngineStats(
            num_running=len(residents.running),
            num_waiting=len(self._waiting),
            num_preempted=len(residents.swapped),
            free_pages=residents.pages.num_free,
            num_pages=residents.pages.size,
            free_slots=residents.slots.num_free,
            num_slots=residents.slots.size,
            preemptions=residents.num_preemptions,
            **asdict(self._counters),
        )

    def check(self) -> None:
        """Checks that each request is in exactly one queue, in the order of age, and owns what it should."""
        residents = self._residents
        places = [*residents.running.values(), *residents.swapped.values(), *self._waiting]
        assert sorted(id(one) for one in places) == sorted(id(one) for one in self._requests.values())
        first = dict(reversed(self._waiting.orders))  # by priority
        for one in [*residents.running.values(), *residents.swapped.values()]:
            assert one.number < first.get(one.params.priority, one.number + 1), "an older request waits behind it"
        residents.check()
        self._snapshots.check({request.number for request in self._requests.values()})
        steps = [({*one.decoding.tolist()}, {id(r) for r in one.sampled + one.unsampled}) for one in self._in_flight]
        for request in residents.running.values():
            in_flight = sum(request.place in decoding or id(request) in chunks for decoding, chunks in steps)
            assert request.num_in_flight == in_flight, f"request {request.number} miscounts its steps in flight"
