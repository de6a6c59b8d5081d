"""The scheduler against a model that checks every page, slot and position (``tests/support/fake_model.py``)."""

import random
from itertools import pairwise

import msgspec
import pytest

from splitrank.serving.protocol.messages import StepPlan, StepResult, TokenLogprobs
from tests.support.fake_model import FAILURE, digest_of, expected_tokens, small_spec
from tests.support.scheduler_loop import Loop


def numbers(loop: Loop) -> list[int]:
    """Plans a step: the requests in it, decodes first."""
    plan = loop.plan()
    assert plan is not None
    return [span.request for span in loop.spans[plan.step]]


def spans(loop: Loop) -> list[tuple[int, int]]:
    plan = loop.plan()
    assert plan is not None
    return [(span.start, span.end) for span in loop.spans[plan.step]]


def test_chunks_end_at_absolute_multiples_and_decodes_go_along() -> None:
    loop = Loop(small_spec())
    loop.add("short", [1, 2, 3], max_tokens=5)
    loop.add("long", list(range(20)), max_tokens=2)
    assert spans(loop) == [(0, 3)]  # 3 + 8 tokens are more than a chunk: the long one is never cut to fit
    loop.commit()
    for chunk in [(0, 8), (8, 16), (16, 20)]:
        decode = (loop.model.slots[0][1], loop.model.slots[0][1] + 1)
        assert spans(loop) == [decode, chunk]
        loop.commit()
    loop.run()
    assert loop.tokens["short"] == expected_tokens([1, 2, 3], 5, 50)
    assert loop.tokens["long"] == expected_tokens(list(range(20)), 2, 50)


def test_short_prompts_share_one_prefill_budget() -> None:
    loop = Loop(small_spec())
    for name in "abc":
        loop.add(name, [1, 2, 3, 4], max_tokens=1)
    assert numbers(loop) == [0, 1]
    loop.commit()
    assert numbers(loop) == [2]


def test_a_step_may_have_more_prompt_tokens_than_a_chunk() -> None:
    loop = Loop(small_spec(max_prefill_tokens=20))
    loop.add("long", list(range(20)), max_tokens=1)
    loop.add("other", list(range(13)), max_tokens=1)
    loop.add("short", [1, 2, 3], max_tokens=1)
    assert spans(loop) == [(0, 8), (0, 8), (0, 3)]
    loop.commit()
    assert spans(loop) == [(8, 16), (8, 13)]  # a prompt has one chunk a step


def test_chunks_of_one_prompt_follow_each_other_in_flight() -> None:
    loop = Loop(small_spec(), num_microbatches=3)
    loop.add("long", list(range(20)), max_tokens=2)
    assert [spans(loop) for _ in range(3)] == [[(0, 8)], [(8, 16)], [(16, 20)]]
    assert loop.plan() is None


@pytest.mark.parametrize(
    ("num_requests", "depth", "sizes"), [(6, 2, [3, 3]), (5, 2, [2, 3]), (2, 4, [1, 1]), (6, 4, [2, 1, 1, 2])]
)
def test_decodes_are_spread_over_the_microbatches(num_requests: int, depth: int, sizes: list[int]) -> None:
    loop = Loop(small_spec(), num_microbatches=depth)
    for index in range(num_requests):
        loop.add(str(index), [index], max_tokens=9)
    loop.plan()
    loop.commit()
    for size in sizes:
        assert len(numbers(loop)) == size
    assert loop.plan() is None


def test_the_youngest_is_swapped_out_and_comes_back_before_anyone_new() -> None:
    loop = Loop(small_spec(num_pages=6, max_running_requests=2))
    loop.add("old", [1] * 8, max_tokens=12)
    loop.add("young", [2] * 5, max_tokens=12)
    loop.add("new", [3], max_tokens=1)
    swapped_out = swapped_in = None
    while not loop.scheduler.is_idle:
        plan = loop.plan()
        assert plan is not None
        swapped_out = swapped_out if swapped_out is not None or not plan.swap_out else plan
        swapped_in = swapped_in if swapped_in is not None or not plan.swap_in else plan
        if any(admitted.request_number == 2 for admitted in plan.admitted):
            assert swapped_in is not None
        loop.commit()
    assert swapped_out is not None
    assert swapped_in is not None
    assert [swap.request_number for swap in swapped_out.swap_out] == [1]
    assert [span.request for span in loop.spans[swapped_out.step]] == [
        0
    ]  # the pages it gave up are used by the same step
    assert [swap.request_number for swap in swapped_in.swap_in] == [1]
    assert loop.tokens["young"] == expected_tokens([2] * 5, 12, 50)
    assert loop.scheduler.stats().preemptions == 1


def test_nobody_new_comes_in_while_a_running_prompt_waits_for_pages() -> None:
    loop = Loop(small_spec(page_size=1, num_pages=30))
    loop.add("old", [1] * 4, max_tokens=12)
    loop.add("long", [2] * 24, max_tokens=1)
    loop.add("new", [3], max_tokens=1)
    plans = []
    while "long" not in loop.ended:
        plans.append(numbers(loop))
        loop.commit()
        assert "new" not in loop.ended or "long" in loop.ended
    assert [0] in plans[1:], "the long one never had to wait: this proves nothing"


def test_each_running_request_keeps_a_page_in_reserve() -> None:
    loop = Loop(small_spec(num_pages=4))
    loop.add("first", [1] * 7, max_tokens=4)
    loop.add("second", [2] * 8, max_tokens=4)
    loop.run()
    assert loop.scheduler.stats().preemptions == 0


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("num_requests", "depth"), [(3, 2), (15, 2), (16, 2), (8, 3), (7, 4), (6, 4), (5, 4), (9, 4)])
def test_a_step_planned_ahead_waits_for_no_step_that_overlaps_it(num_requests: int, depth: int, at_once: bool) -> None:
    """At any time of arrival: rows of ``depth`` steps in a row are different ones, or the stages compute in turns; and
    these steps have the same size up to one row, or a stage idles."""
    spec = small_spec(num_pages=200, max_running_requests=num_requests, max_model_len=100)
    loop = Loop(spec, num_microbatches=depth, plans_ahead=True)
    decodes: list[set[int]] = []
    for index in range(num_requests):
        loop.add(str(index), [index], max_tokens=90)
        if not at_once:
            assert loop.plan() is not None
            if len(loop.results) > depth:
                loop.commit()
    for _ in range(40):
        while (plan := loop.plan()) is not None:
            decodes.append(set(plan.decodes))
        loop.commit()
    for number in range(2 * num_requests, len(decodes) - depth):
        overlapping = decodes[number : number + depth]
        assert len(set.union(*overlapping)) == sum(map(len, overlapping)), overlapping
        assert max(map(len, overlapping)) - min(map(len, overlapping)) <= 1, overlapping


def test_one_request_is_planned_ahead_in_every_pipeline() -> None:
    loop = Loop(small_spec(), num_microbatches=2, plans_ahead=True)
    loop.add("alone", [1], max_tokens=9)
    assert [loop.plan() is not None for _ in range(3)] == [True, True, False]


def test_no_decode_is_passed_over_twice() -> None:
    loop = Loop(small_spec(), num_microbatches=2)
    for index in range(3):
        loop.add(str(index), [index], max_tokens=20)
    steps: dict[int, list[int]] = {number: [] for number in range(3)}
    for step in range(10):  # one step at a time, although two of two and one could be in flight
        for number in numbers(loop):
            steps[number].append(step)
        loop.commit()
    assert {later - earlier for one in steps.values() for earlier, later in pairwise(one)} <= {1, 2}
    assert min(map(len, steps.values())) >= 4


def test_abort_in_every_phase_gives_everything_back() -> None:
    loop = Loop(small_spec(num_pages=6, max_running_requests=2))
    loop.add("old", [1] * 8, max_tokens=12)
    loop.add("young", [2] * 5, max_tokens=12)
    loop.add("waiting", [3], max_tokens=1)
    loop.abort("waiting")
    assert loop.ended["waiting"].finish_reason == "abort"
    while not loop.scheduler.stats().num_preempted:
        loop.plan()
        loop.commit()
    loop.abort("young")  # swapped out
    assert loop.ended["young"].finish_reason == "abort"
    plan = loop.plan()
    assert plan is not None
    assert plan.released == [1]
    loop.abort("old")  # in flight: ends when its step commits, and hears no token of it
    loop.abort("old")
    heard = len(loop.tokens["old"])
    assert "old" not in loop.ended
    loop.commit()
    assert loop.ended["old"].finish_reason == "abort"
    assert len(loop.tokens["old"]) == heard
    stats = loop.scheduler.stats()
    assert (stats.free_pages, stats.free_slots, stats.aborts) == (6, 2, 3)
    loop.abort("old")  # long over
    loop.abort("never heard of")
    assert loop.scheduler.stats().aborts == 3


def test_an_aborted_prompt_with_two_chunks_in_flight_ends_with_the_second() -> None:
    loop = Loop(small_spec(), num_microbatches=2)
    loop.add("long", list(range(30)), max_tokens=2)
    loop.plan()
    loop.plan()
    loop.abort("long")
    loop.commit()
    assert loop.plan() is None
    assert "long" not in loop.ended
    loop.commit()
    assert loop.ended["long"].finish_reason == "abort"
    assert loop.scheduler.is_idle


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("at", [11, 13], ids=["at its first token", "later"])
def test_a_row_that_fails_ends_its_request_alone(depth: int, at: int) -> None:
    loop = Loop(small_spec(), num_microbatches=depth)
    prompts = {name: [index] * 11 for index, name in enumerate(("before", "bad", "after"))}
    for name, prompt in prompts.items():
        loop.add(name, prompt, max_tokens=6)
    loop.model.failing = {1: at}
    loop.run()
    ended = loop.ended["bad"]
    assert (ended.finish_reason, ended.error_code, ended.error) == ("error", FAILURE.code, FAILURE.reason)
    assert loop.tokens["bad"] == expected_tokens(prompts["bad"], at - 11, 50)
    for name in ("before", "after"):
        assert loop.tokens[name] == expected_tokens(prompts[name], 6, 50)
        assert loop.ended[name].finish_reason == "length"
    loop.add("later", [9], max_tokens=2)  # its plan tells the ranks who is released, and the model checks that
    loop.run()
    assert loop.tokens["later"] == expected_tokens([9], 2, 50)
    assert loop.scheduler.stats().free_pages == loop.spec.num_pages


def test_a_row_that_fails_after_its_request_was_aborted_is_an_abort() -> None:
    loop = Loop(small_spec())
    loop.add("bad", [1], max_tokens=6)
    loop.model.failing = {0: 1}
    loop.plan()
    loop.abort("bad")
    loop.commit()
    assert loop.ended["bad"].finish_reason == "abort"


def test_stop_tokens_end_of_sequence_and_lengths() -> None:
    prompt = [4, 5, 6]
    free = expected_tokens(prompt, 20, 50)
    stop = free[5]
    first = free.index(stop)
    loop = Loop(small_spec(eos_token_ids=(stop,)))
    loop.add("eos", prompt, max_tokens=20)
    loop.add("ignored", prompt, max_tokens=20, ignore_eos=True)
    loop.add("token", prompt, max_tokens=20, ignore_eos=True, stop_token_ids=(free[2],))
    loop.add("minimum", prompt, max_tokens=20, min_tokens=first + 1)
    loop.add("grammar", prompt, max_tokens=20, min_tokens=first + 1, grammar="start: /.*/")
    loop.add("context", [7] * 60, max_tokens=20, ignore_eos=True)
    loop.run()
    assert loop.tokens["eos"] == free[: first + 1]
    assert (loop.ended["eos"].finish_reason, loop.ended["eos"].stop_token_id) == ("stop", stop)
    assert loop.tokens["ignored"] == free
    assert (loop.ended["ignored"].finish_reason, loop.ended["ignored"].stop_token_id) == ("length", None)
    assert loop.tokens["token"] == free[: free.index(free[2]) + 1]
    assert len(loop.tokens["minimum"]) > first + 1
    assert loop.tokens["grammar"] == free[: first + 1]  # only a whole answer is followed by a stop token so early
    assert len(loop.tokens["context"]) == 4  # max_model_len 64
    assert loop.ended["context"].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "text"),
    [
        ([], 1, "empty"),
        ([1] * 64, 1, "maximum context length is 64 tokens, but the prompt has 64"),
        ([50], 1, "between 0 and 49, not 50"),
        ([-1], 1, "not -1"),
        ([1] * 20, 30, "49 tokens need 13 pages of 4, there are 12"),
    ],
)
def test_what_can_never_run_is_refused_with_the_numbers(prompt: list[int], max_tokens: int, text: str) -> None:
    loop = Loop(small_spec(num_pages=12))
    loop.add("bad", prompt, max_tokens=max_tokens)
    assert loop.ended["bad"].error_code == "invalid_request"
    assert text in str(loop.ended["bad"].error)
    assert loop.scheduler.is_idle


def test_the_largest_request_that_fits_alone_runs() -> None:
    loop = Loop(small_spec(num_pages=12))
    loop.add("fits", [1] * 20, max_tokens=29)
    loop.run()
    assert loop.tokens["fits"] == expected_tokens([1] * 20, 29, 50)


def test_a_full_queue_refuses() -> None:
    loop = Loop(small_spec(max_running_requests=1, max_queued_requests=1))
    for name in "abc":
        loop.add(name, [1], max_tokens=1)
    assert list(loop.ended) == ["c"]
    assert loop.ended["c"].error_code == "queue_full"
    loop.run()
    loop.add("d", [1], max_tokens=1)
    assert "d" not in loop.ended


def run_workload(seed: int, depth: int, abort_rate: float) -> tuple[dict[str, list[int]], Loop]:
    """Random arrivals, aborts and commits; every plan is executed and checked, every end compared with the truth."""
    rng = random.Random(seed)
    spec = small_spec(num_pages=rng.choice([16, 17, 20, 40]), max_running_requests=rng.choice([1, 3, 6]))
    loop = Loop(spec, depth)
    todo = [(f"r{index}", random_request(rng)) for index in range(40)]
    prompts = dict(todo)
    while todo or not loop.scheduler.is_idle:
        action = rng.random()
        if todo and action < 0.3:
            name, (prompt, max_tokens) = todo.pop()
            loop.add(name, prompt, max_tokens=max_tokens)
        elif action > 1 - abort_rate:
            loop.abort(rng.choice(list(prompts)))
        elif loop.plan() is None and loop.results:
            loop.commit()
        loop.scheduler.check()
    for name, end in loop.ended.items():
        prompt, max_tokens = prompts[name]
        truth = expected_tokens(prompt, max_tokens, spec.vocab_size)
        assert loop.tokens[name] == truth[: len(loop.tokens[name])]
        assert end.finish_reason == ("abort" if len(loop.tokens[name]) < len(truth) else "length")
    assert (loop.scheduler.stats().free_pages, loop.scheduler.stats().free_slots) == (
        spec.num_pages,
        spec.max_running_requests,
    )
    return dict(loop.tokens), loop


def random_request(rng: random.Random) -> tuple[list[int], int]:
    length = rng.choice([1, 2, 7, 8, 9, 16, 30])
    return [rng.randrange(50) for _ in range(length)], rng.randint(1, 30)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(6, 15))])
def test_random_arrivals_and_aborts(seed: int, depth: int) -> None:
    run_workload(seed, depth, abort_rate=0.05)


def test_every_depth_gives_the_tokens_of_the_simple_loop_and_preemption_happens() -> None:
    simple, loop = run_workload(3, 1, abort_rate=0.0)
    preemptions = [loop.scheduler.stats().preemptions]
    for depth in (2, 3, 4):
        tokens, loop = run_workload(3, depth, abort_rate=0.0)
        assert tokens == simple
        preemptions.append(loop.scheduler.stats().preemptions)
    assert all(preemptions), f"a workload without preemption proves nothing about it: {preemptions}"


def test_log_probabilities_of_a_prompt_come_chunk_by_chunk() -> None:
    class Scoring:
        """The fake model, which also scores the tokens that follow each token of a chunk."""

        def execute(self, plan: StepPlan, plan_hash: str) -> StepResult:
            result = loop.model.execute(plan, plan_hash)
            spans = [span for span in loop.model.spans if span.start < 20]
            scores = {
                one.request: [TokenLogprobs(-float(n), [], []) for n in range(one.start + 1, min(one.end + 1, 20))]
                for one in spans
            }
            return msgspec.structs.replace(result, prompt_logprobs=scores)

    loop = Loop(small_spec())
    loop.executor = Scoring()
    loop.add("a", list(range(20)), max_tokens=2, prompt_logprobs=0)
    outputs = []
    while loop.plan() is not None:
        outputs += loop.scheduler.commit(loop.results.popleft()).all()
    found = [[-int(one.logprob) for one in output.prompt_logprobs or ()] for output in outputs]
    assert found == [[*range(1, 9)], [*range(9, 17)], [*range(17, 20)], []]
    assert [len(output.token_ids) for output in outputs] == [0, 0, 1, 1]


@pytest.mark.parametrize("digests", [True, False])
def test_each_token_comes_with_the_digest_of_its_own_logits(digests: bool) -> None:
    """Beside rows that end, fail, or have log probabilities, which take another way."""
    loop = Loop(msgspec.structs.replace(small_spec(), digests=digests), num_microbatches=2)
    for number, length in enumerate([1, 4, 9, 7]):
        loop.add(str(number), [number, 5], max_tokens=length, stop_token_ids=[999] if number == 2 else [])
    loop.model.failing[3] = 5
    loop.run()
    assert loop.ended["3"].finish_reason == "error"
    for name, tokens in loop.tokens.items():
        assert loop.digests[name] == ([digest_of(token) for token in tokens] if digests else [])
