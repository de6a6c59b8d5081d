"""Where snapshots are taken and who begins from them, in chats and elsewhere, and that no answer changes.

``FakeModel`` checks that a snapshot holds the very tokens that the prompt which begins from it begins with.
"""

from itertools import pairwise

import pytest

from splitrank.serving.engine.snapshots import MARKER_TOKENS
from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from splitrank.serving.protocol.messages import LaunchSpec, StepPlan
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.fake_model import expected_tokens, small_spec
from tests.support.scheduler_loop import Loop

SHARED = list(range(24))
STATE_BYTES, PAGE_BYTES = 100, 10


def caching_spec(**changes: object) -> LaunchSpec:
    """Blocks and pages of 4 tokens."""
    sizes = {"prefix_block_size": 4, "state_bytes": STATE_BYTES, "kv_page_bytes": PAGE_BYTES}
    return small_spec(**(sizes | {"prefix_cache_bytes": 100_000} | changes))


def starts(loop: Loop, plan: StepPlan | None) -> list[tuple[int, int]]:
    assert plan is not None
    return [(span.start, span.end - span.start) for span in loop.spans[plan.step]]


def saved(plans: list[StepPlan]) -> list[int]:
    """Tokens of each snapshot of a prompt."""
    return [one.num_tokens for plan in plans for one in plan.saved]


def kept(plans: list[StepPlan]) -> list[int]:
    """Tokens of each snapshot of a finished request."""
    return [one.num_tokens for plan in plans for one in plan.kept]


def ask(loop: Loop, name: str, prompt: list[int], max_tokens: int = 2) -> list[StepPlan]:
    """Alone, to its end: the plans of it."""
    loop.add(name, prompt, max_tokens=max_tokens)
    plans = []
    while (plan := loop.plan()) is not None:
        plans.append(plan)
        loop.commit()
    assert loop.tokens[name] == expected_tokens(prompt, max_tokens, loop.spec.vocab_size)
    return plans


def cached(loop: Loop, *names: str) -> list[int]:
    return [loop.ended[name].num_cached_tokens for name in names]


def test_a_prompt_is_saved_at_its_last_whole_block_before_the_marker_and_not_cut_there() -> None:
    loop = Loop(caching_spec())
    plans = ask(loop, "first", [*SHARED[:13], 40, 41, 42, 43, 44])
    assert [starts(loop, plan) for plan in plans] == [[(0, 8)], [(8, 8)], [(16, 2)], [(18, 1)], []]
    assert [[one.num_tokens for one in plan.saved] for plan in plans] == [[8], [], [], [], []]
    assert 18 - MARKER_TOKENS == 10
    plans = ask(loop, "next", [*SHARED[:13], 45, 46, 47, 48, 49])
    assert [starts(loop, plan) for plan in plans] == [[(8, 8)], [(16, 2)], [(18, 1)], []]
    assert [one.num_tokens for one in plans[0].restored] == [8]
    assert loop.scheduler.stats().cached_tokens == 8
    assert loop.scheduler.stats().prompt_tokens == 18 + 10


def test_a_prompt_is_also_saved_where_it_parts_from_an_earlier_one() -> None:
    loop = Loop(caching_spec(chunked_prefill_size=32))
    assert saved(ask(loop, "first", [*SHARED[:13], *[40] * 14])) == [16]
    plans = ask(loop, "second", [*SHARED[:13], *[41] * 14])
    assert [starts(loop, plan) for plan in plans] == [[(0, 27)], [(27, 1)], []]
    assert saved(plans) == [12, 16]  # both inside one chunk
    ask(loop, "third", [*SHARED[:13], *[42] * 14])
    assert cached(loop, "first", "second", "third") == [0, 0, 12]


def test_something_is_left_to_compute_when_the_whole_prompt_is_known() -> None:
    loop = Loop(caching_spec())
    turn = ask(loop, "a", SHARED[:16], max_tokens=8)
    assert saved(turn) == [8]
    repeated = SHARED[:16] + loop.tokens["a"] + [30]
    assert kept(ask(loop, "b", repeated, max_tokens=6)) == [25 + 5]
    fed = repeated + loop.tokens["b"][:5]
    ask(loop, "the very tokens of the snapshot", fed)
    ask(loop, "one more", [*fed, 3])
    assert cached(loop, "b", "the very tokens of the snapshot", "one more") == [8, 8, 30]


@pytest.mark.parametrize("changes", [{"prefix_cache_bytes": 0}, {"prefix_cache_bytes": STATE_BYTES}])
def test_without_room_every_prompt_is_computed_whole(changes: dict[str, int]) -> None:
    loop = Loop(caching_spec(**changes))
    for name in ("a", "b", "c"):
        plans = ask(loop, name, SHARED)
        assert not any(plan.saved or plan.kept or plan.restored for plan in plans)


def test_a_snapshot_is_not_used_in_the_step_that_takes_it_nor_taken_twice() -> None:
    loop = Loop(caching_spec(chunked_prefill_size=80), num_microbatches=1)
    for name in ("first", "second", "third"):
        loop.add(name, [*SHARED, len(name)], max_tokens=2)
    plan = loop.plan()
    assert plan is not None
    assert starts(loop, plan) == [(0, 25)] * 3
    assert saved([plan]) == [16]
    assert plan.restored == []
    loop.run()


def test_one_that_ends_before_its_snapshot_leaves_it_to_the_next() -> None:
    loop = Loop(caching_spec())
    loop.add("first", SHARED, max_tokens=2)
    assert starts(loop, loop.plan()) == [(0, 8)]
    loop.commit()
    loop.abort("first")
    assert saved(ask(loop, "second", [*SHARED, 42])) == [16]
    assert kept(ask(loop, "third", [*SHARED, 43])) == []


def test_short_rests_of_known_prompts_share_a_step() -> None:
    loop = Loop(caching_spec())
    ask(loop, "a", SHARED[:20])
    for name in ("c", "d", "e", "f"):
        loop.add(name, [*SHARED[:12], ord(name) - 60, 1], max_tokens=2)
    assert starts(loop, loop.plan()) == [(12, 2)] * 4
    loop.run()


# ---------------------------------------------------------------- chats


class Chat:
    """Turns of one chat: each prompt is the history and the marker, each answer goes into the history less its
    thoughts."""

    def __init__(self, loop: Loop, first: list[int], marker: list[int], num_thoughts: int) -> None:
        self.loop, self.history = loop, first
        self.marker, self.num_thoughts = marker, num_thoughts

    def turn(self, name: str, question: list[int], num_tokens: int) -> tuple[int, int]:
        """Tokens of the prompt, and those of them that came from the cache."""
        prompt = [*self.history, *question, *self.marker]
        ask(self.loop, name, prompt, self.num_thoughts + num_tokens)
        self.history = [*self.history, *question, *self.loop.tokens[name][self.num_thoughts :]]
        return len(prompt), self.loop.ended[name].num_cached_tokens


def chat_spec(block_size: int, **changes: object) -> LaunchSpec:
    sizes = {"prefix_block_size": block_size, "max_model_len": 4000, "num_pages": 1000, "chunked_prefill_size": 512}
    return caching_spec(**(sizes | changes))


def question(turn: int, length: int) -> list[int]:
    return [(3 * turn + 7 * index) % 50 for index in range(length)]


@pytest.mark.parametrize(("block_size", "length"), [(4, 20), (16, 20), (16, 80), (64, 80), (64, 160)])
def test_a_turn_begins_where_the_turn_before_ended_if_answers_are_repeated(block_size: int, length: int) -> None:
    """But for the last token, which was sampled and never fed. Until the second turn shows that answers are repeated,
    the prompt alone is kept."""
    chat = Chat(Loop(chat_spec(block_size)), question(0, 40), marker=[], num_thoughts=0)
    turns = [chat.turn(str(number), question(number, length), length) for number in range(10)]
    for (before, _), (_, from_cache) in pairwise(turns[1:]):
        assert from_cache == before + length - 1
    (first, _), (_, second) = turns[:2]
    assert first - MARKER_TOKENS - block_size < second <= first - MARKER_TOKENS
    prompt, from_cache = turns[-1]
    assert from_cache / prompt > 0.9


def test_on_a_gpu_every_turn_begins_at_a_whole_block() -> None:
    """Its kernels take no chunk that begins inside of one, however often answers are repeated."""
    block_size, length = 16, 20
    chat = Chat(Loop(chat_spec(block_size, device="cuda")), question(0, 40), marker=[], num_thoughts=0)
    found = [chat.turn(str(number), question(number, length), length)[1] for number in range(10)]
    assert all(tokens % block_size == 0 for tokens in found)
    assert all(found[1:])


@pytest.mark.parametrize("num_thoughts", [0, 30])
@pytest.mark.parametrize(("block_size", "length"), [(4, 20), (16, 20), (16, 80), (64, 80), (64, 160)])
def test_a_turn_begins_at_the_last_whole_block_of_the_prompt_before_if_the_template_drops_thoughts(
    block_size: int, length: int, num_thoughts: int
) -> None:
    chat = Chat(Loop(chat_spec(block_size)), question(0, 40), marker=[44, 45, 46, 47], num_thoughts=num_thoughts)
    turns = [chat.turn(str(number), question(number, length), length) for number in range(10)]
    for (before, _), (_, from_cache) in pairwise(turns):
        assert before - MARKER_TOKENS - block_size < from_cache <= before - MARKER_TOKENS
    plans = ask(chat.loop, "last", [*chat.history, 1, *chat.marker])
    assert not kept(plans), "an answer that never comes back is not worth a copy"


@pytest.mark.parametrize("thinking", [True, False])
def test_the_next_turn_leaves_out_no_more_than_the_marker(thinking: bool) -> None:
    """What ``MARKER_TOKENS`` takes for granted, in the demo's tokens and template, which are made like Qwen's."""
    tokenizer = Tokenizer.from_folder(demo_checkpoint_path())
    messages = [{"role": "user", "content": "Mia has 14 shells. How many has she?"}]
    prompt = tokenizer.encode_chat(messages, {"enable_thinking": thinking})
    answer = "<think>\nShe has 14.\n</think>\n\nShe has 14 shells.\n#### 14"
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And twice as many?"}]
    after = tokenizer.encode_chat(messages, {"enable_thinking": thinking})
    num_common = next(index for index, pair in enumerate(zip(prompt, after, strict=False)) if pair[0] != pair[1])
    assert len(prompt) - MARKER_TOKENS <= num_common < len(prompt)


def test_chats_side_by_side_hold_one_snapshot_each() -> None:
    """In the room of one more than there are chats, all turns of all chats are found."""
    num_chats, turns = 5, 8
    room = (num_chats + 1) * (STATE_BYTES + PAGE_BYTES * (40 + 28 * turns) // 4)
    loop = Loop(chat_spec(4, prefix_cache_bytes=room))
    chats = [Chat(loop, [number] * 30, marker=[44, 45], num_thoughts=5) for number in range(num_chats)]
    for turn in range(turns):
        for number, chat in enumerate(chats):
            prompt, from_cache = chat.turn(f"{number}.{turn}", question(turn, 14), 14)
            assert turn == 0 or from_cache > prompt - 28 - 2 - MARKER_TOKENS - 4


def test_prompts_that_never_come_again_leave_a_chat_its_snapshot() -> None:
    loop = Loop(chat_spec(4, prefix_cache_bytes=6 * (STATE_BYTES + 40 * PAGE_BYTES)))
    chat = Chat(loop, question(0, 30), marker=[44], num_thoughts=3)
    chat.turn("first", question(9, 10), 10)
    for turn in range(6):
        prompt, from_cache = chat.turn(f"chat {turn}", question(turn, 10), 10)
        assert from_cache > prompt - 20 - 1 - MARKER_TOKENS - 4
        for number in range(20):
            ask(loop, f"once {turn} {number}", [number, turn, *question(number, 60)])


def test_a_prompt_that_many_go_on_from_is_not_replaced_by_one_of_them() -> None:
    loop = Loop(caching_spec(prefix_cache_bytes=2 * (STATE_BYTES + 10 * PAGE_BYTES), chunked_prefill_size=64))
    ask(loop, "system prompt", SHARED)
    for number in range(4):
        ask(loop, str(number), [*SHARED[:20], 40 + number, *[number] * 14])
    assert cached(loop, "0", "1", "2", "3") == [16, 16, 16, 16]


def test_steps_with_tools_go_on_from_the_answer_and_the_next_question_from_the_prompt() -> None:
    """A chat template keeps the thoughts since the last question, while tools are called, and drops them after it."""
    loop = Loop(chat_spec(4))
    history, marker, sizes = question(0, 40), [44, 45, 46], []
    for turn in range(3):
        prompt = [*history, *question(turn + 1, 12), *marker]
        cut = len(prompt) - len(marker)
        for call in range(4):
            name = f"{turn}.{call}"
            ask(loop, name, prompt, 15)
            sizes.append((len(prompt), loop.ended[name].num_cached_tokens))
            answer = loop.tokens[name]
            prompt = [*prompt, *answer, *question(call, 9), *marker]
        history = [*prompt[:cut], *answer[10:]]
    whole_steps = [from_cache == before + 14 for (before, _), (_, from_cache) in pairwise(sizes)]
    # The first call of a turn goes on from a prompt, the second shows that answers are repeated.
    assert whole_steps == [False, True, True, False] * 2 + [False, True, True]
    for turn in (1, 2):
        assert sizes[4 * turn][1] > sizes[4 * (turn - 1)][0] - MARKER_TOKENS - 4


def test_the_next_turn_may_come_before_the_ranks_have_heard_that_this_one_ended() -> None:
    """The same plan keeps the finished request, and begins the next one from there in its slot and pages."""
    loop = Loop(chat_spec(4))
    history = question(0, 40)
    for turn in range(3):
        loop.add(str(turn), history, max_tokens=20)
        while str(turn) not in loop.ended:
            loop.plan()
            loop.commit()
        history = [*history, *loop.tokens[str(turn)], *question(turn, 7)]
    loop.add("next", history, max_tokens=1)
    plan = loop.plan()
    assert plan is not None
    assert [one.snapshot for one in plan.kept] == [one.snapshot for one in plan.restored]
    assert starts(loop, plan) == [(len(history) - 8, 8)]
    loop.commit()


def test_a_prompt_asked_again_is_no_answer_that_came_back() -> None:
    loop = Loop(chat_spec(4))
    for number in range(4):
        assert not kept(ask(loop, f"one token {number}", question(0, 50), max_tokens=1))
    for number in range(4):
        assert not kept(ask(loop, f"many tokens {number}", question(1, 50), max_tokens=20))


def test_a_single_block_may_be_shared() -> None:
    loop = Loop(chat_spec(16))
    for number in range(3):
        ask(loop, str(number), [*SHARED[:16], *([30 + number] * 60)])
    assert cached(loop, "0", "1", "2") == [0, 0, 16]


def test_an_aborted_answer_is_not_kept() -> None:
    loop = Loop(chat_spec(4))
    chat = Chat(loop, question(0, 40), marker=[], num_thoughts=0)
    for turn in range(2):
        chat.turn(str(turn), question(turn, 20), 20)
    loop.add("aborted", [*chat.history, 1, 2, 3], max_tokens=20)
    plans = []
    for _ in range(5):
        plan = loop.plan()
        assert plan is not None
        plans.append(plan)
        loop.commit()
    loop.abort("aborted")
    plan = loop.plan()
    assert plan is not None
    assert not kept([*plans, plan])
    loop.commit()
    assert chat.turn("again", question(3, 20), 20)[1] == len(chat.history) - 40 - 1


@pytest.mark.parametrize("plans_ahead", [False, True])
def test_an_answer_that_stops_is_kept_as_far_as_it_was_computed(plans_ahead: bool) -> None:
    """Planning ahead, the token that stops it is computed too."""
    loop, history, ends = Loop(chat_spec(4), plans_ahead=plans_ahead), question(0, 40), []
    for turn in range(4):
        name, prompt = str(turn), [*history, *question(turn, 12)]
        stop = expected_tokens(prompt, 20, loop.spec.vocab_size)[-1]
        loop.add(name, prompt, max_tokens=50, stop_token_ids=(stop,))
        loop.run()
        assert loop.ended[name].stop_token_id == stop
        history = [*prompt, *loop.tokens[name]]
        ends.append(len(history))
    assert cached(loop, "2", "3") == [end - (not plans_ahead) for end in ends[1:3]]


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole() -> None:
    """Others begin from its snapshots, and it begins from none."""
    loop = Loop(caching_spec())
    prompt = [*SHARED, 40, 41]
    for name in ("first", "second"):
        loop.add(name, prompt, max_tokens=2, prompt_logprobs=0)
        loop.run()
    ask(loop, "third", prompt)
    assert cached(loop, "first", "second", "third") == [0, 0, 16]
