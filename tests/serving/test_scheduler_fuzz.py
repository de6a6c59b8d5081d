"""Random workloads: chats and shared beginnings, aborts, preemption, evictions, at every depth of the pipeline.

``FakeModel`` checks every plan, ``Loop`` the scheduler's integrity after every call, and each token is compared with
that of the simple loop: one step in flight, everybody alone, no cache.
"""

import random
from dataclasses import dataclass, field

import pytest

from splitrank.serving.messages import LaunchSpec
from tests.fake_model import small_spec
from tests.serving.scheduler_loop import Loop

NUM_CHATS = 10
CONTEXT = 100
MAX_HISTORY = 78  # with a marker and an answer, within the context
SEEDS = range(30)


@dataclass(eq=False)
class Chat:
    """Turns that repeat each answer, or drop the generation marker and half the answer, as after thinking."""

    number: int
    history: list[int]
    repeats_answers: bool
    num_turns: int
    asked: dict[str, tuple[list[int], int]] = field(default_factory=dict)  # prompt and max_tokens by request

    def next_turn(self, rng: random.Random) -> str:
        self.num_turns -= 1
        name = f"chat {self.number}, {self.num_turns} to go"
        marker = [] if self.repeats_answers else [49, 48]
        self.asked[name] = ([*self.history, *marker], rng.randint(1, 20))
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
        num_pages=-(-rng.choice([CONTEXT, CONTEXT, 130]) // page_size),
        page_size=page_size,
        chunked_prefill_size=rng.choice([4, 8, 16]),
        max_running_requests=rng.choice([2, 4, 6]),
    )


def run_chats(seed: int) -> tuple[Loop, list[Chat]]:
    """Chats side by side, each asking again when it was answered; now and then an action aborts some request."""
    rng = random.Random(seed)
    loop = Loop(random_spec(rng), rng.choice([1, 2, 3, 4]))
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
            prompt, max_tokens = chat.asked[name]
            open_turns[name] = chat
            loop.add(name, prompt, max_tokens=max_tokens)
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


@pytest.mark.parametrize("seed", SEEDS)
def test_every_token_is_that_of_the_simple_loop(seed: int) -> None:
    loop, chats = run_chats(seed)
    simple = Loop(small_spec(max_model_len=CONTEXT, num_pages=25))
    for name, (prompt, max_tokens) in ((name, asked) for chat in chats for name, asked in chat.asked.items()):
        simple.add(name, prompt, max_tokens=max_tokens)
        simple.run()
        tokens, whole = loop.tokens[name], simple.tokens[name]
        assert tokens == whole[: len(tokens)]
        assert loop.ended[name].finish_reason == "abort" or len(tokens) == len(whole)
    assert (loop.model.history, loop.model.host) == ({}, {})
    stats, spec = loop.scheduler.stats(), loop.spec
    assert (stats.free_pages, stats.free_slots) == (spec.num_pages, spec.max_running_requests)


def test_the_workloads_hold_what_they_are_to_test() -> None:
    loops = [run_chats(seed)[0] for seed in SEEDS]
    stats = [loop.scheduler.stats() for loop in loops]
    assert sum(one.aborts for one in stats) > 50
    assert sum(one.preemptions for one in stats) > 30
    assert sum(one.cached_tokens for one in stats) > 2000
    inside_a_block = [tokens for loop in loops for tokens, _ in loop.model.snapshots.values() if len(tokens) % 4]
    assert len(inside_a_block) > 10
