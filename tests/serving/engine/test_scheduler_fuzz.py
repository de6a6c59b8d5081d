"""Random workloads: chats and shared beginnings, aborts, preemption, evictions, at every depth of the pipeline.

``FakeModel`` checks every plan, ``Loop`` the scheduler's integrity after every call, and each token is compared with
that of the simple loop: one step in flight, everybody alone, no cache.
"""

import random
from dataclasses import dataclass, field
from functools import cache

import pytest

from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import LaunchSpec
from tests.support.fake_model import expected_tokens, small_spec
from tests.support.scheduler_loop import Loop

NUM_CHATS = 10
CONTEXT = 100
MAX_HISTORY = 78  # with a marker and an answer, within the context
SEEDS, MORE_SEEDS = range(16), range(16, 40)


@dataclass(eq=False)
class Chat:
    """Turns that repeat each answer, or drop the generation marker and half the answer, as after thinking."""

    number: int
    history: list[int]
    repeats_answers: bool
    num_turns: int
    asked: dict[str, tuple[list[int], dict[str, int]]] = field(default_factory=dict)  # prompt and params by request

    def next_turn(self, rng: random.Random) -> str:
        self.num_turns -= 1
        name = f"chat {self.number}, {self.num_turns} to go"
        marker = [] if self.repeats_answers else [49, 48]
        max_tokens = rng.randint(1, 20)
        params = {"max_tokens": max_tokens, "min_tokens": rng.choice([0, 0, min(3, max_tokens)])}
        self.asked[name] = ([*self.history, *marker], params)
        return name

    def hear(self, answer: list[int], rng: random.Random) -> None:
        repeated = answer if self.repeats_answers else answer[len(answer) // 2 :]
        self.history = [*self.history, *repeated, *(rng.randrange(50) for _ in range(rng.randint(1, 9)))]
        if len(self.history) > MAX_HISTORY:
            self.num_turns = 0


def random_spec(rng: random.Random) -> LaunchSpec:
    page_size = rng.choice([3, 4, 5])
    return small_spec(
        max_model_len=CONTEXT,
        prefix_block_size=4,
        state_bytes=100,
        kv_page_bytes=10,
        prefix_cache_bytes=rng.choice([0, 150, 600, 4000]),
        num_pages=pages_needed(rng.choice([CONTEXT, CONTEXT, 130]), page_size),
        page_size=page_size,
        chunked_prefill_size=rng.choice([4, 8, 16]),
        max_prefill_tokens=rng.choice([16, 24]),
        max_running_requests=rng.choice([2, 4, 6]),
        eos_token_ids=rng.choice([(), (), (3, 11, 40)]),
    )


@cache  # the tests only read what it left
def run_chats(seed: int, plans_ahead: bool) -> tuple[Loop, list[Chat]]:
    """Chats side by side, each asking again when it was answered; now and then an action aborts some request, or some
    row fails."""
    rng = random.Random(seed)
    loop = Loop(random_spec(rng), rng.choice([1, 2, 3, 4]), plans_ahead=plans_ahead)
    loop.model.failing = {rng.randrange(40): rng.randrange(20, 40) for _ in range(rng.choice([0, 0, 3]))}
    stems = [[rng.randrange(50) for _ in range(16)] for _ in range(3)]
    lengths = [1, 8, 12, 13, 16]
    chats = [
        Chat(number, rng.choice(stems)[: rng.choice(lengths)], rng.random() < 0.7, rng.randint(1, 7))
        for number in range(NUM_CHATS)
    ]
    open_turns: dict[str, Chat] = {}
    while open_turns or any(chat.num_turns for chat in chats):
        action = rng.random()
        silent = [chat for chat in chats if chat.num_turns and chat not in open_turns.values()]
        if silent and action < 0.3:
            chat = rng.choice(silent)
            name = chat.next_turn(rng)
            prompt, params = chat.asked[name]
            open_turns[name] = chat
            loop.add(name, prompt, **params)
        elif open_turns and action > 0.985:
            loop.abort(rng.choice(list(open_turns)))
        elif loop.plan() is None or rng.random() < 0.2:
            assert loop.results or loop.scheduler.is_idle, "a deadlock: nothing is in flight and nothing can be planned"
            if loop.results:
                loop.commit()
        for name in [name for name in open_turns if name in loop.ended]:
            open_turns.pop(name).hear(loop.tokens[name], rng)
    loop.run()
    return loop, chats


@pytest.mark.parametrize("plans_ahead", [False, True])
@pytest.mark.parametrize("seed", [*SEEDS, *(pytest.param(seed, marks=pytest.mark.full) for seed in MORE_SEEDS)])
def test_every_token_is_that_of_the_simple_loop(seed: int, plans_ahead: bool) -> None:
    loop, chats = run_chats(seed, plans_ahead)
    spec = loop.spec
    simple = Loop(small_spec(max_model_len=CONTEXT, num_pages=25, eos_token_ids=spec.eos_token_ids))
    for name, (prompt, params) in ((name, asked) for chat in chats for name, asked in chat.asked.items()):
        simple.add(name, prompt, **params)
        simple.run()
        tokens, whole, end = loop.tokens[name], simple.tokens[name], loop.ended[name]
        assert tokens == whole[: len(tokens)]
        if end.finish_reason not in ("abort", "error"):
            assert len(tokens) == len(whole)
            assert (end.finish_reason, end.stop_token_id) == (
                simple.ended[name].finish_reason,
                simple.ended[name].stop_token_id,
            )
    assert (loop.model.history, loop.model.host, loop.model.table) == ({}, {}, {})
    stats = loop.scheduler.stats()
    assert (stats.free_pages, stats.free_slots) == (spec.num_pages, spec.max_running_requests)


@pytest.mark.parametrize("plans_ahead", [False, True])
def test_the_workloads_hold_what_they_are_to_test(plans_ahead: bool) -> None:
    loops = [run_chats(seed, plans_ahead)[0] for seed in SEEDS]
    stats = [loop.scheduler.stats() for loop in loops]
    ends = [end.finish_reason for loop in loops for end in loop.ended.values()]
    assert min(ends.count(reason) for reason in ("length", "stop", "abort")) > 1.25 * len(SEEDS)
    assert ends.count("error") > len(SEEDS) / 4
    assert sum(one.preemptions for one in stats) > 0.75 * len(SEEDS)
    assert sum(one.cached_tokens for one in stats) > 50 * len(SEEDS)
    inside_a_block = [tokens for loop in loops for tokens, _ in loop.model.snapshots.values() if len(tokens) % 4]
    assert len(inside_a_block) > len(SEEDS) / 4


def test_planning_ahead_computes_a_row_too_many_where_a_request_stops_and_nowhere_else() -> None:
    for prompt, ends_early in (([4, 5, 6], True), ([9, 9], False)):
        answer = expected_tokens(prompt, 12, 50)
        stop = answer[5]
        loop = Loop(small_spec(eos_token_ids=(stop,) if ends_early else ()), plans_ahead=True)
        loop.add("one", prompt, max_tokens=12)
        loop.run()
        length = answer.index(stop) + 1 if ends_early else 12
        assert loop.tokens["one"] == answer[:length]
        computed = max(span.end for spans in loop.spans.values() for span in spans)
        assert computed == len(prompt) + length - (not ends_early)
