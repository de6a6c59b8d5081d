"""A model without a model: it keeps pages and slots as a rank does, and checks that they hold what they should.

The state after tokens t0..tn is a number folded over them; the next token follows from it. So the right answer is
known without an engine (``expected_tokens``), and any slip in paging, swapping, slots or order is an assertion.
"""

from dataclasses import dataclass, field

from splitrank.serving.cache import pages_needed
from splitrank.serving.messages import (
    LaunchSpec,
    RowFailure,
    SequencePlan,
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
class FakeModel:
    spec: LaunchSpec
    slots: dict[int, SlotState] = field(default_factory=dict)
    pages: dict[int, dict[int, Cell]] = field(default_factory=dict)
    history: dict[int, list[int]] = field(default_factory=dict)  # of every request that is not released
    prompts: dict[int, list[int]] = field(default_factory=dict)
    host: dict[int, tuple[SlotState, list[dict[int, Cell]]]] = field(default_factory=dict)
    snapshots: dict[int, tuple[list[int], int]] = field(default_factory=dict)  # tokens, folded value
    failing: dict[int, int] = field(default_factory=dict)  # a request's row fails once it has so many tokens
    begun: dict[int, int] = field(default_factory=dict)  # where a request began: 0, or behind a snapshot

    def execute(self, plan: StepPlan, digest: str) -> StepResult:
        for kept in plan.kept:
            request, num_tokens, value = self.slots[kept.slot]
            assert request in plan.released, "a request is kept that has not ended"
            self._save(kept, request, num_tokens, value)
        for request in plan.released:
            del self.history[request], self.prompts[request], self.begun[request]
            self.host.pop(request, None)
        for admitted in plan.admitted:
            assert admitted.request not in self.history, f"request {admitted.request} is admitted twice"
            self.history[admitted.request] = []
            self.prompts[admitted.request] = admitted.prompt_token_ids
            self.begun[admitted.request] = 0
        for swap in plan.swap_out:
            self._swap_out(swap)
        for swap in plan.swap_in:
            self._swap_in(swap)
        for restored in plan.restored:
            self._restore(restored, plan)
        self._check_disjoint(plan)
        values = [self._run(sequence, plan.saved) for sequence in plan.sequences]
        assert all(saved.snapshot in self.snapshots for saved in plan.saved), "a snapshot of nobody in this step"
        for snapshot in plan.dropped:
            del self.snapshots[snapshot]
        sampled = [
            (sequence.request, token_of(value, self.spec.vocab_size))
            for sequence, value in zip(plan.sequences, values, strict=True)
            if sequence.sample
        ]
        failures = {row: FAILURE for row, (request, _) in enumerate(sampled) if self._fails(request)}
        return StepResult(plan.step, digest, [token for _, token in sampled], [None] * len(sampled), failures)

    def _fails(self, request: int) -> bool:
        return len(self.history[request]) >= self.failing.get(request, self.spec.max_model_len + 1)

    def _swap_out(self, swap: SwapPlan) -> None:
        state = self.slots.pop(swap.slot)
        assert state[0] == swap.request
        assert len(swap.pages) == pages_needed(state[1], self.spec.page_size)
        self.host[swap.request] = (state, [self.pages.pop(page) for page in swap.pages])

    def _swap_in(self, swap: SwapPlan) -> None:
        state, contents = self.host.pop(swap.request)
        self.slots[swap.slot] = state
        self.pages.update(zip(swap.pages, contents, strict=True))

    def _save(self, saved: SnapshotPlan, request: int, num_tokens: int, value: int) -> None:
        assert saved.snapshot not in self.snapshots
        assert saved.num_tokens == num_tokens
        tokens = self.history[request][:num_tokens]
        self._check_pages(saved.pages, request, tokens)
        self.snapshots[saved.snapshot] = (tokens, value)

    def _restore(self, restored: SnapshotPlan, plan: StepPlan) -> None:
        """For a request that begins with this step, and whose prompt begins with those very tokens."""
        tokens, value = self.snapshots[restored.snapshot]
        (sequence,) = [one for one in plan.sequences if one.slot == restored.slot]
        assert sequence.start == restored.num_tokens == len(tokens) < len(self.prompts[sequence.request])
        assert self.prompts[sequence.request][: len(tokens)] == tokens, "a snapshot of another prompt"
        assert restored.pages == sequence.pages[: pages_needed(len(tokens), self.spec.page_size)]
        self.history[sequence.request] = list(tokens)
        self.begun[sequence.request] = len(tokens)
        self.slots[restored.slot] = (sequence.request, len(tokens), value)
        for position, token in enumerate(tokens):
            page = self.pages.setdefault(restored.pages[position // self.spec.page_size], {})
            page[position % self.spec.page_size] = (sequence.request, position, token)

    def _check_disjoint(self, plan: StepPlan) -> None:
        pages = [page for sequence in plan.sequences for page in sequence.pages]
        slots = [sequence.slot for sequence in plan.sequences]
        assert len(set(pages)) == len(pages), "two sequences of a step share a page"
        assert len(set(slots)) == len(slots), "two sequences of a step share a slot"
        assert all(0 <= page < self.spec.num_pages for page in pages)
        assert all(0 <= slot < self.spec.max_running_requests for slot in slots)
        chunks = [sequence for sequence in plan.sequences if self._is_prompt(sequence)]
        assert sum(len(chunk.tokens) for chunk in chunks) <= self.spec.chunked_prefill_size
        for chunk in chunks:
            self._check_boundaries(chunk)
        for sequence in plan.sequences:
            assert self._is_prompt(sequence) or (len(sequence.tokens) == 1 and sequence.sample)

    def _is_prompt(self, sequence: SequencePlan) -> bool:
        return sequence.start < len(self.prompts[sequence.request])

    def _check_boundaries(self, chunk: SequencePlan) -> None:
        """Chunks meet at multiples of the size, but the first one begins behind the snapshot that was restored."""
        prompt, size = self.prompts[chunk.request], self.spec.chunked_prefill_size
        end = chunk.start + len(chunk.tokens)
        assert chunk.start % size == 0 or chunk.start == self.begun[chunk.request]
        assert end == min((chunk.start // size + 1) * size, len(prompt))
        assert chunk.tokens == prompt[chunk.start : end]
        assert chunk.sample == (end == len(prompt))

    def _check_pages(self, pages: list[int], request: int, tokens: list[int]) -> None:
        page_size = self.spec.page_size
        assert len(pages) == pages_needed(len(tokens), page_size)
        for position, token in enumerate(tokens):
            cell = self.pages[pages[position // page_size]][position % page_size]
            assert cell == (request, position, token), f"page holds {cell} of another request or time"

    def _run(self, sequence: SequencePlan, saved: list[SnapshotPlan]) -> int:
        history, page_size = self.history[sequence.request], self.spec.page_size
        assert sequence.start == len(history), f"request {sequence.request} starts at {sequence.start}, not at the end"
        end = sequence.start + len(sequence.tokens)
        assert len(sequence.pages) == pages_needed(end, page_size)
        self._check_pages(sequence.pages[: pages_needed(len(history), page_size)], sequence.request, history)
        request, folded, value = self.slots.get(sequence.slot, (-1, 0, 0)) if sequence.start else (-1, 0, 0)
        assert (request, folded) == ((sequence.request, sequence.start) if sequence.start else (-1, 0))
        snapshots = {one.num_tokens: one for one in saved if one.slot == sequence.slot}
        assert all((position - sequence.start) % self.spec.prefix_block_size == 0 for position in snapshots)
        for position, token in enumerate(sequence.tokens, sequence.start):
            self.pages.setdefault(sequence.pages[position // page_size], {})[position % page_size] = (
                sequence.request,
                position,
                token,
            )
            value = fold(value, token)
            history.append(token)
            if position + 1 in snapshots:
                self._save(snapshots[position + 1], sequence.request, position + 1, value)
        self.slots[sequence.slot] = (sequence.request, end, value)
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
    return LaunchSpec(**(values | changes))  # type: ignore[arg-type]
