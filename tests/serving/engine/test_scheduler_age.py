"""The order of age: who waits for pages, who gives them up, and that an older request is never passed over."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import LaunchSpec, StepPlan
from tests.support.fake_model import expected_tokens, small_spec
from tests.support.scheduler_loop import Loop

SEEDS = [17, 34, 60, 71, 101, 135, 147]


def steps_of(loop: Loop, last: str) -> dict[int, list[int]]:
    """Runs until ``last`` has ended: the steps that computed each request."""
    steps: dict[int, list[int]] = {}
    while last not in loop.ended:
        plan = loop.plan()
        if plan is None:
            loop.commit()
            continue
        for span in loop.spans[plan.step]:
            steps.setdefault(span.request, []).append(plan.step)
    return steps


def longest_gap(steps: list[int]) -> int:
    return max((after - before for before, after in pairwise(steps)), default=0)


def spec_with_prefixes(**changes: object) -> LaunchSpec:
    return small_spec(prefix_block_size=4, state_bytes=1, kv_page_bytes=1, prefix_cache_bytes=1000, **changes)


OLD_REST = [(7 * index) % 50 for index in range(64)]
YOUNG = [7] * 4


def begun_from_a_snapshot(others: tuple[str, ...] = (), **changes: object) -> Loop:
    """Of "old", a snapshot covers 12 tokens, so its short first chunk [12, 16) leaves room in the step for "young".

    ``others`` are older than both. Requests 0 and 1 are over.
    """
    loop = Loop(spec_with_prefixes(max_model_len=96, **changes))
    for name in ("warm", "warmer"):  # they part after 12 tokens
        loop.add(name, [*range(12), *range(len(name), len(name) + 12)], max_tokens=1)
        loop.run()
    for name in others:
        loop.add(name, [9] * 4, max_tokens=60)
        loop.plan()
        loop.commit()
    loop.add("old", [*range(12), *OLD_REST], max_tokens=1)
    loop.add("young", YOUNG, max_tokens=70)
    return loop


def test_a_prompt_does_not_wait_for_the_pages_of_a_younger_request() -> None:
    """Its last chunks need pages that the younger one takes while it decodes, if it may come in at all."""
    loop = begun_from_a_snapshot(page_size=8, num_pages=11)
    steps = steps_of(loop, "old")
    assert longest_gap(steps[2]) == 1
    loop.run()
    assert loop.tokens["young"] == expected_tokens(YOUNG, 70, 50)


def test_a_prompt_does_not_wait_for_a_younger_request_when_an_older_one_took_its_pages() -> None:
    loop = begun_from_a_snapshot(others=("oldest",), page_size=2, num_pages=47)
    steps = steps_of(loop, "old")
    assert loop.scheduler.stats().preemptions == 1
    assert longest_gap(steps[3]) == 1


def test_who_comes_in_leaves_every_running_prompt_its_pages() -> None:
    loop = begun_from_a_snapshot(page_size=8, num_pages=11)  # 10 for the old prompt
    loop.run()
    assert loop.scheduler.stats().preemptions == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_older_decode_gets_the_page_before_a_younger_prompt(depth: int) -> None:
    loop = Loop(small_spec(page_size=4, num_pages=12, chunked_prefill_size=4), depth)
    loop.add("old", [1] * 4, max_tokens=30)
    loop.add("young", [2] * 30, max_tokens=16)
    steps = steps_of(loop, "old")
    assert loop.scheduler.stats().preemptions > 0
    # At most a round of the pipeline more than usual, until a younger one in flight can give its pages up.
    assert longest_gap(steps[0]) <= 2 * depth


def random_loop(seed: int, max_tokens: int, priorities: tuple[int, ...] = (0,)) -> tuple[Loop, int]:
    """Eight requests at once, few pages, 2 to 4 steps in flight; priorities in turns."""
    rng = random.Random(seed)
    depth = rng.choice([2, 3, 4])
    page_size = rng.choice([2, 3, 4])
    sizes = {"page_size": page_size, "num_pages": pages_needed(rng.choice([64, 80]), page_size)}
    more = {"max_running_requests": rng.choice([3, 4, 6, 8]), "chunked_prefill_size": rng.choice([4, 8, 16])}
    loop = Loop(small_spec(**sizes, **more), depth)
    for index in range(8):
        sizes = rng.randint(1, 14), rng.randint(8, max_tokens)
        loop.add(str(index), [index] * sizes[0], max_tokens=sizes[1], priority=priorities[index % len(priorities)])
    return loop, depth


def plans_with_swapped(loop: Loop) -> Iterator[tuple[StepPlan, set[int]]]:
    """Every plan until nothing is left to do, with the requests that are swapped out behind it."""
    swapped: set[int] = set()
    while not loop.scheduler.is_idle:
        plan = loop.plan()
        if plan is None:
            loop.commit()
            continue
        swapped |= {swap.request_number for swap in plan.swap_out}
        swapped -= {swap.request_number for swap in plan.swap_in}
        yield plan, swapped


@pytest.mark.parametrize("seed", SEEDS)
def test_no_request_goes_on_while_an_older_one_is_swapped_out(seed: int) -> None:
    """Not even one that was in flight, and could not give up its pages, when the older one had to."""
    loop, _ = random_loop(seed, max_tokens=18)
    for plan, swapped in plans_with_swapped(loop):
        assert all(span.request < min(swapped, default=8) for span in loop.spans[plan.step])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_oldest_waits_no_longer_than_the_steps_in_flight(seed: int) -> None:
    """Its own step, or that of the youngest one whose pages it needs."""
    loop, depth = random_loop(seed, max_tokens=48)
    oldest, since = 0, 0
    while not loop.scheduler.is_idle:
        plan = loop.plan()
        if plan is None:
            loop.commit()
            continue
        if str(oldest) in loop.ended:
            oldest, since = min(number for number in range(8) if str(number) not in loop.ended), plan.step
        if any(span.request == oldest for span in loop.spans[plan.step]):
            since = plan.step
        assert plan.step - since <= depth
    assert loop.scheduler.stats().preemptions > 0


def test_a_prompt_that_was_swapped_out_comes_back_when_its_rest_has_room() -> None:
    """Not when its next chunk alone has: it would soon be swapped out again."""
    loop = Loop(small_spec(page_size=1, num_pages=50, chunked_prefill_size=4))
    for number, max_tokens in enumerate((6, 30, 30)):
        loop.add(str(number), [number] * 4, max_tokens=max_tokens)
        loop.plan()
        loop.commit()
    loop.add("prompt", [9] * 30, max_tokens=4)
    swaps = []
    while not loop.scheduler.is_idle:
        plan = loop.plan()
        assert plan is not None
        swaps += [("out", swap.request_number) for swap in plan.swap_out] + [
            ("in", swap.request_number) for swap in plan.swap_in
        ]
        loop.commit()
    assert swaps == [("out", 3), ("out", 2), ("in", 2), ("in", 3)]


def test_the_ranks_are_told_when_the_last_request_has_ended() -> None:
    loop = Loop(small_spec(max_running_requests=2))
    loop.add("done", [1, 2, 3], max_tokens=2)
    loop.add("aborted", [4, 5], max_tokens=20)
    for _ in range(3):
        loop.plan()
        loop.commit()
    loop.abort("aborted")
    assert loop.scheduler.is_idle
    plan = loop.plan()
    assert plan is not None
    assert (plan.released, plan.has_rows) == ([1], False)
    loop.commit()
    assert (loop.model.history, loop.model.host) == ({}, {})
    assert loop.plan() is None  # once
    loop.add("never admitted", [1], max_tokens=1)
    loop.abort("never admitted")
    assert loop.plan() is None


# ------------------------------------------------------------------ priorities


def admitted_order(loop: Loop) -> list[int]:
    order: list[int] = []
    while (plan := loop.plan()) is not None or loop.results:
        if plan is None:
            loop.commit()
        else:
            order += [one.request_number for one in plan.admitted]
    return order


def test_who_waits_comes_in_by_priority_and_then_by_arrival() -> None:
    loop = Loop(small_spec(max_running_requests=1))
    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 0), ("e", -1)):
        loop.add(name, [1, 2, 3], max_tokens=2, priority=priority)
    assert admitted_order(loop) == [2, 4, 0, 3, 1]


def test_a_running_request_keeps_its_slot() -> None:
    loop = Loop(small_spec(max_running_requests=1))
    loop.add("low", [1, 2, 3], max_tokens=9, priority=7)
    loop.plan()
    loop.add("high", [1, 2, 3], max_tokens=1, priority=-7)
    loop.commit()
    loop.run()
    assert list(loop.ended) == ["low", "high"]
    assert loop.scheduler.stats().preemptions == 0


def test_the_lowest_priority_gives_up_its_pages_and_comes_back_last() -> None:
    """Though it came first. A request that came later, of higher priority, goes before it, too."""
    loop = Loop(small_spec(num_pages=6, max_running_requests=2))
    loop.add("low", [1] * 8, max_tokens=12, priority=1)
    loop.add("high", [2] * 5, max_tokens=12)
    while not loop.scheduler.stats().num_preempted:
        assert loop.plan() is not None
        loop.commit()
    loop.add("later", [3], max_tokens=1)
    order = admitted_order(loop)
    assert (order, list(loop.ended)) == ([2], ["later", "high", "low"])
    assert loop.tokens["low"] == expected_tokens([1] * 8, 12, 50)


@pytest.mark.parametrize("seed", SEEDS)
def test_priorities_change_the_order_and_no_token(seed: int) -> None:
    loop, _ = random_loop(seed, max_tokens=18, priorities=(3, 0, 0, -2, 1))
    requests = {one.number: one for one in loop.scheduler._requests.values()}
    for plan, swapped in plans_with_swapped(loop):
        least = min((requests[number].order for number in swapped), default=(9, 9))
        assert all(requests[span.request].order < least for span in loop.spans[plan.step])
    for number, request in requests.items():
        assert loop.tokens[str(number)] == expected_tokens(request.prompt_token_ids, request.params.max_tokens, 50)
