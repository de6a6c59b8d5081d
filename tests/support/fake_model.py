"""A model without a model: it keeps pages and slots as a rank does, and checks that they hold what they should.

The state after tokens t0..tn is a number folded over them; the next token follows from it. So the right answer is
known without an engine (``expected_tokens``), and any slip in paging, swapping, slots or order is an assertion.
"""

from dataclasses import dataclass, field

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import (
    ChunkPlan,
    LaunchSpec,
    RowFailure,
    SnapshotPlan,
    StepPlan,
    StepResult,
    SwapPlan,
)

FAILURE = RowFailure("invalid_numbers", "the model's logits are made of cheese")

Cell = tuple[int, int, int]  # request, position, token
SlotState = tuple[int, int, int]  # request, tokens folded, folded value


def fold(value: int, token: int) -> int:
    return (value * 1_000_003 + token + 1) % (2**61 - 1)


def token_of(value: int, vocab_size: int) -> int:
    return (value >> 7) % vocab_size


def expected_tokens(prompt: list[int], num_tokens: int, vocab_size: int, stop: tuple[int, ...] = ()) -> list[int]:
    """What any correct engine generates, up to the first token of ``stop``."""
    value = 0
    for token in prompt:
        value = fold(value, token)
    output: list[int] = []
    while len(output) < num_tokens and not (output and output[-1] in stop):
        output.append(token_of(value, vocab_size))
        value = fold(value, output[-1])
    return output


@dataclass
class FakeRow:
    """What a rank's table holds of a request."""

    request: int
    prompt: list[int]
    last_token: int = -1  # sampled, not computed
    pages: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """What a step computes of one request: positions start to end - 1."""

    request: int
    start: int
    end: int


def digest_of(token: int) -> bytes:
    """Stands for that of the logits that gave the token."""
    return b"logits of %d" % token


@dataclass
class FakeModel:
    spec: LaunchSpec
    table: dict[int, FakeRow] = field(default_factory=dict)  # by slot
    slots: dict[int, SlotState] = field(default_factory=dict)
    pages: dict[int, dict[int, Cell]] = field(default_factory=dict)
    history: dict[int, list[int]] = field(default_factory=dict)  # of every request that is not released
    prompts: dict[int, list[int]] = field(default_factory=dict)
    host: dict[int, tuple[FakeRow, SlotState, list[dict[int, Cell]]]] = field(default_factory=dict)
    snapshots: dict[int, tuple[list[int], int]] = field(default_factory=dict)  # tokens, folded value
    failing: dict[int, int] = field(default_factory=dict)  # a request's row fails once it has so many tokens
    begun: dict[int, int] = field(default_factory=dict)  # where a request began: 0, or behind a snapshot
    spans: list[Span] = field(default_factory=list)  # of the step executed last: decodes, then chunks

    def execute(self, plan: StepPlan, digest: str) -> StepResult:
        self._move_rows(plan)
        for restored in plan.restored:
            self._restore(restored, plan)
        self._check_disjoint(plan)
        self.spans = [self._decode_span(slot) for slot in plan.decodes] + list(map(self._chunk_span, plan.chunks))
        sampled = plan.decodes + [chunk.slot for chunk in plan.chunks if chunk.sample]
        values = dict(self._decode(slot) for slot in plan.decodes) | dict(
            self._compute_chunk(chunk, plan.saved) for chunk in plan.chunks
        )
        assert all(saved.snapshot in self.snapshots for saved in plan.saved), "a snapshot of nobody in this step"
        for snapshot in plan.dropped:
            del self.snapshots[snapshot]
        tokens = [self._sample(slot, values[slot]) for slot in sampled]
        failures = {row: FAILURE for row, slot in enumerate(sampled) if self._fails(self.table[slot].request)}
        digests = [digest_of(token) for token in tokens] if self.spec.digests else []
        return StepResult(plan.step, digest, tokens, failures=failures, digests=digests)

    def _move_rows(self, plan: StepPlan) -> None:
        for kept in plan.kept:
            request, num_tokens, value = self.slots[kept.slot]
            assert request in plan.released, "a request is kept that has not ended"
            self._save(kept, request, num_tokens, value)
        for request in plan.released:
            del self.history[request], self.prompts[request], self.begun[request]
            self.host.pop(request, None)
            self.table = {slot: row for slot, row in self.table.items() if row.request != request}
        for swap in plan.swap_out:
            self._swap_out(swap)
        for admitted in plan.admitted:
            assert admitted.request_number not in self.history, f"request {admitted.request_number} is admitted twice"
            assert admitted.slot not in self.table, "a slot has two owners"
            self.table[admitted.slot] = FakeRow(admitted.request_number, admitted.prompt_token_ids)
            self.history[admitted.request_number] = []
            self.prompts[admitted.request_number] = admitted.prompt_token_ids
            self.begun[admitted.request_number] = admitted.start
        for swap in plan.swap_in:
            assert swap.slot not in self.table, "a slot has two owners"
            self.table[swap.slot] = self.host[swap.request_number][0]
        for new in plan.pages:
            self.table[new.slot].pages += new.pages
        for swap in plan.swap_in:
            self._swap_in(swap)

    def _sample(self, slot: int, value: int) -> int:
        token = token_of(value, self.spec.vocab_size)
        self.table[slot].last_token = token
        return token

    def _fails(self, request: int) -> bool:
        return len(self.history[request]) >= self.failing.get(request, self.spec.max_model_len + 1)

    def _swap_out(self, swap: SwapPlan) -> None:
        row, state = self.table.pop(swap.slot), self.slots.pop(swap.slot)
        assert row.request == state[0] == swap.request_number
        assert len(row.pages) == pages_needed(state[1], self.spec.page_size)
        self.host[swap.request_number] = (row, state, [self.pages.pop(page) for page in row.pages])
        row.pages = []

    def _swap_in(self, swap: SwapPlan) -> None:
        row, state, contents = self.host.pop(swap.request_number)
        self.slots[swap.slot] = state
        self.pages.update(zip(row.pages[: len(contents)], contents, strict=True))

    def _save(self, saved: SnapshotPlan, request: int, num_tokens: int, value: int) -> None:
        assert saved.snapshot not in self.snapshots
        assert saved.num_tokens == num_tokens
        assert self.table[saved.slot].request == request
        tokens = self.history[request][:num_tokens]
        self._check_pages(self.table[saved.slot].pages, request, tokens)
        self.snapshots[saved.snapshot] = (tokens, value)

    def _restore(self, restored: SnapshotPlan, plan: StepPlan) -> None:
        """For a request that begins with this step, and whose prompt begins with those very tokens."""
        tokens, value = self.snapshots[restored.snapshot]
        row = self.table[restored.slot]
        assert restored.slot in [chunk.slot for chunk in plan.chunks]
        assert self.begun[row.request] == restored.num_tokens == len(tokens) < len(row.prompt)
        assert row.prompt[: len(tokens)] == tokens, "a snapshot of another prompt"
        self.history[row.request] = list(tokens)
        self.slots[restored.slot] = (row.request, len(tokens), value)
        for position, token in enumerate(tokens):
            self._write(row, position, token)

    def _write(self, row: FakeRow, position: int, token: int) -> None:
        page, offset = row.pages[position // self.spec.page_size], position % self.spec.page_size
        self.pages.setdefault(page, {})[offset] = (row.request, position, token)

    def _check_disjoint(self, plan: StepPlan) -> None:
        pages = [page for row in self.table.values() for page in row.pages]
        slots = plan.decodes + [chunk.slot for chunk in plan.chunks]
        assert len(set(pages)) == len(pages), "two rows share a page"
        assert len(set(slots)) == len(slots), "a row is computed twice in a step"
        assert all(0 <= page < self.spec.num_pages for page in pages)
        assert all(0 <= slot < self.spec.max_running_requests for slot in self.table)
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= self.spec.max_prefill_tokens

    def _decode_span(self, slot: int) -> Span:
        request = self.table[slot].request
        length = len(self.history[request])
        return Span(request, length, length + 1)

    def _chunk_span(self, chunk: ChunkPlan) -> Span:
        request = self.table[chunk.slot].request
        length = len(self.history[request])
        return Span(request, length, length + chunk.num_tokens)

    def _decode(self, slot: int) -> tuple[int, int]:
        """Slot and folded value."""
        row = self.table[slot]
        assert len(self.history[row.request]) >= len(row.prompt), "a decode in the middle of a prompt"
        return slot, self._run(slot, [row.last_token], [])

    def _compute_chunk(self, chunk: ChunkPlan, saved: list[SnapshotPlan]) -> tuple[int, int]:
        """Chunks meet at multiples of the size, but the first one begins behind the snapshot that was restored."""
        row, size = self.table[chunk.slot], self.spec.chunked_prefill_size
        start, length = len(self.history[row.request]), len(row.prompt)
        end = start + chunk.num_tokens
        assert start % size == 0 or start == self.begun[row.request]
        assert end == min((start // size + 1) * size, length)
        assert chunk.sample == (end == length)
        return chunk.slot, self._run(chunk.slot, row.prompt[start:end], saved)

    def _check_pages(self, pages: list[int], request: int, tokens: list[int]) -> None:
        page_size = self.spec.page_size
        assert len(pages) >= pages_needed(len(tokens), page_size)
        for position, token in enumerate(tokens):
            cell = self.pages[pages[position // page_size]][position % page_size]
            assert cell == (request, position, token), f"page holds {cell} of another request or time"

    def _run(self, slot: int, tokens: list[int], saved: list[SnapshotPlan]) -> int:
        row = self.table[slot]
        history = self.history[row.request]
        start, end = len(history), len(history) + len(tokens)
        assert len(row.pages) == pages_needed(end, self.spec.page_size)
        self._check_pages(row.pages, row.request, history)
        request, folded, value = self.slots.get(slot, (-1, 0, 0)) if start else (-1, 0, 0)
        assert (request, folded) == ((row.request, start) if start else (-1, 0))
        snapshots = {one.num_tokens: one for one in saved if one.slot == slot}
        assert all((position - start) % self.spec.prefix_block_size == 0 for position in snapshots)
        for position, token in enumerate(tokens, start):
            self._write(row, position, token)
            value = fold(value, token)
            history.append(token)
            if position + 1 in snapshots:
                self._save(snapshots[position + 1], row.request, position + 1, value)
        self.slots[slot] = (row.request, end, value)
        return value


def small_spec(**changes: object) -> LaunchSpec:
    """A spec of toy sizes, valid in every test that needs no model folder."""
    values: dict[str, object] = {
        "run_dir": "",
        "model_dir": "",
        "dtype": "float32",
        "tp_size": 1,
        "pp_size": 1,
        "partition": (1,),
        "tie_word_embeddings": False,
        "threads_per_rank": 1,
        "max_model_len": 64,
        "max_running_requests": 6,
        "page_size": 4,
        "num_pages": 24,
        "chunked_prefill_size": 8,
        "max_queued_requests": 1000,
        "vocab_size": 50,
        "eos_token_ids": (),
        "seed": 0,
        "load_timeout_s": 60.0,
        "step_timeout_s": 30.0,
        "heartbeat_timeout_s": 10.0,
        "verify_weights": False,
        "log_level": "warning",
        "show_progress": False,
    }
    values |= changes
    values.setdefault("max_prefill_tokens", values["chunked_prefill_size"])
    return LaunchSpec(**values)  # type: ignore[arg-type]
