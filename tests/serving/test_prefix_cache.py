"""Shared prompt prefixes: where snapshots are taken, who begins from them, and that no answer changes.

``FakeModel`` checks that a snapshot holds the very tokens that the prompt which begins from it begins with.
"""

import random

import pytest

from splitrank.serving.messages import LaunchSpec, StepPlan
from splitrank.serving.prefix_cache import PrefixCache
from tests.fake_model import expected_tokens, small_spec
from tests.serving.scheduler_loop import Loop

SHARED = list(range(20))
STATE_BYTES, PAGE_BYTES = 100, 10


def caching_spec(num_snapshots: int = 4, **changes: object) -> LaunchSpec:
    """Blocks and pages of 4 tokens; room for so many snapshots of 12 tokens."""
    sizes = {"prefix_block_size": 4, "state_bytes": STATE_BYTES, "kv_page_bytes": PAGE_BYTES}
    return small_spec(**sizes, prefix_cache_bytes=num_snapshots * (STATE_BYTES + 3 * PAGE_BYTES), **changes)


def starts(plan: StepPlan | None) -> list[tuple[int, int]]:
    assert plan is not None
    return [(one.start, len(one.tokens)) for one in plan.sequences]


def ask(loop: Loop, name: str, prompt: list[int]) -> list[StepPlan]:
    """Alone, to its end: the plans of it."""
    loop.add(name, prompt, max_tokens=2)
    plans = []
    while not loop.scheduler.is_idle:
        plan = loop.plan()
        assert plan is not None
        plans.append(plan)
        loop.commit()
    assert loop.tokens[name] == expected_tokens(prompt, 2, loop.spec.vocab_size)
    return plans


def cached(loop: Loop, name: str) -> int:
    return loop.ended[name].num_cached_tokens


def test_the_second_prompt_saves_where_it_parts_from_the_first_and_the_third_begins_there() -> None:
    loop = Loop(caching_spec())
    first = ask(loop, "first", [*SHARED[:13], 40, 41, 42])
    assert [starts(plan) for plan in first] == [[(0, 8)], [(8, 8)], [(16, 1)]]
    assert not any(plan.saved for plan in first)
    second = ask(loop, "second", [*SHARED[:13], 45, 46, 47, 48])
    assert [starts(plan) for plan in second] == [[(0, 8)], [(8, 4)], [(12, 4)], [(16, 1)], [(17, 1)]]
    assert [len(plan.saved) for plan in second] == [0, 1, 0, 0, 0]
    third = ask(loop, "third", [*SHARED[:13], 49])
    assert [starts(plan) for plan in third] == [[(12, 2)], [(14, 1)]]
    assert third[0].restored[0].snapshot == second[1].saved[0].snapshot
    assert [cached(loop, name) for name in ("first", "second", "third")] == [0, 0, 12]
    assert loop.scheduler.stats().cached_tokens == 12
    assert loop.scheduler.stats().prompt_tokens == 16 + 17 + 2


def test_something_is_left_to_compute_when_the_whole_prompt_is_known() -> None:
    loop = Loop(caching_spec())
    for name in ("a", "b", "c"):
        ask(loop, name, SHARED[:12])
    assert [cached(loop, name) for name in ("a", "b", "c")] == [0, 0, 8]


def test_a_longer_branch_is_taken_from_a_shorter_one() -> None:
    loop = Loop(caching_spec())
    for name, prompt in {"a": [*SHARED, 1], "b": [*SHARED[:8], 30], "c": [*SHARED, 2], "d": [*SHARED, 3]}.items():
        ask(loop, name, prompt)
    assert [cached(loop, name) for name in "abcd"] == [0, 0, 8, 20]


def test_the_snapshot_used_longest_ago_makes_room() -> None:
    loop = Loop(caching_spec(num_snapshots=2))
    for index, start in enumerate((0, 15, 30)):
        for copy in range(2):
            ask(loop, f"{index}{copy}", [*range(start, start + 12), 49, copy])
            if index == 2 and copy == 0:
                ask(loop, "again", [*range(12), 48])  # the first one is used: the second one is the older now
    assert not any(plan.dropped for plan in ask(loop, "other", [*range(30, 42), 47]))
    assert len(loop.model.snapshots) == 2
    ask(loop, "first", [*range(12), 46])
    ask(loop, "second", [*range(15, 27), 46])
    assert [cached(loop, name) for name in ("again", "other", "first", "second")] == [12, 12, 12, 0]


@pytest.mark.parametrize("changes", [{"prefix_cache_bytes": 0}, {"prefix_cache_bytes": STATE_BYTES}])
def test_without_room_every_prompt_is_computed_whole(changes: dict[str, int]) -> None:
    spec = small_spec(prefix_block_size=4, state_bytes=STATE_BYTES, kv_page_bytes=PAGE_BYTES, **changes)
    loop = Loop(spec)
    for name in ("a", "b", "c"):
        plans = ask(loop, name, SHARED)
        assert not any(plan.saved or plan.restored for plan in plans)


def test_a_snapshot_is_not_used_in_the_step_that_takes_it_nor_taken_twice() -> None:
    loop = Loop(caching_spec(chunked_prefill_size=40), max_in_flight=1)
    ask(loop, "first", [*SHARED[:8], 40])
    for name in ("second", "third", "fourth"):
        loop.add(name, [*SHARED[:8], 41, len(name)], max_tokens=2)
    plan = loop.plan()
    assert starts(plan) == [(0, 8), (0, 10), (0, 10)]
    assert plan is not None
    assert len(plan.saved) == 1
    assert plan.restored == []
    loop.run()


def test_one_that_ends_before_its_branch_leaves_it_to_the_next() -> None:
    loop = Loop(caching_spec())
    ask(loop, "first", [*SHARED[:16], 40])
    loop.add("second", [*SHARED[:16], 41], max_tokens=2)
    assert starts(loop.plan()) == [(0, 8)]
    loop.commit()
    loop.abort("second")
    assert [len(plan.saved) for plan in ask(loop, "third", [*SHARED[:16], 42])] == [0, 1, 0, 0]


def test_tokens_in_another_place_are_another_prefix() -> None:
    cache = PrefixCache(caching_spec())
    branches = [
        cache.match(cache.blocks(prompt), step).branch
        for step, prompt in enumerate(
            ([1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 6, 7, 8, 1, 2, 3, 4, 9], [1, 2, 3, 4, 5, 6, 7, 8])
        )
    ]
    assert branches == [0, 0, 4]


def test_short_rests_of_known_prompts_share_a_step() -> None:
    loop = Loop(caching_spec())
    for name in ("a", "b"):
        ask(loop, name, [*SHARED[:12], ord(name) - 60])
    for name in ("c", "d", "e", "f"):
        loop.add(name, [*SHARED[:12], ord(name) - 60, 1], max_tokens=2)
    assert starts(loop.plan()) == [(12, 2)] * 4
    loop.run()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_random_prompts_with_common_beginnings(seed: int, depth: int) -> None:
    """With aborts, preemption and evictions; every plan is executed and checked, every answer compared."""
    rng = random.Random(seed)
    spec = caching_spec(rng.choice([1, 2, 6]), num_pages=rng.choice([16, 24, 40]), max_running_requests=4)
    loop = Loop(spec, depth)
    stems = [[rng.randrange(50) for _ in range(30)] for _ in range(3)]
    prompts = {}
    for index in range(60):
        stem = rng.choice(stems)[: rng.choice([4, 8, 12, 13, 24, 30])]
        prompts[f"r{index}"] = stem + [rng.randrange(50) for _ in range(rng.randint(1, 6))]
    todo = list(prompts.items())
    while todo or not loop.scheduler.is_idle:
        action = rng.random()
        if todo and action < 0.3:
            loop.add(*todo.pop(), max_tokens=12)
        elif action > 0.97:
            loop.abort(rng.choice(list(prompts)))
        elif loop.plan() is None and loop.results:
            loop.commit()
        loop.scheduler.check()
    for name, end in loop.ended.items():
        truth = expected_tokens(prompts[name], 12, spec.vocab_size)
        assert loop.tokens[name] == truth[: len(loop.tokens[name])]
        assert end.finish_reason == ("abort" if len(loop.tokens[name]) < 12 else "length")
    assert loop.scheduler.stats().cached_tokens > 50
