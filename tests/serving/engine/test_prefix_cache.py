"""Which snapshots there are, which of them a prompt begins from, and which make room."""

import pytest

from splitrank.serving.engine.prefix_cache import Kind, PrefixCache, Snapshot, chain_digests
from splitrank.serving.protocol.messages import LaunchSpec
from tests.support.fake_model import small_spec

STATE_BYTES, PAGE_BYTES = 100, 10
SNAPSHOT_BYTES = STATE_BYTES + PAGE_BYTES  # of one block and a tail within its page of 8


def cache_of(num_snapshots: int) -> PrefixCache:
    sizes = {"prefix_block_size": 4, "state_bytes": STATE_BYTES, "kv_page_bytes": PAGE_BYTES, "page_size": 8}
    return PrefixCache(small_spec(**sizes, prefix_cache_bytes=num_snapshots * SNAPSHOT_BYTES))


def add(cache: PrefixCache, tokens: list[int], replaced: Snapshot | None = None, step: int = 0) -> Snapshot:
    """A snapshot of all of them."""
    digests = chain_digests(tokens, 4)
    tail = tokens[4 * len(digests) :]
    snapshot, _ = cache.add(Kind.PROMPT, digests[-1], tail, len(tokens), step, replaced)
    cache.check()
    return snapshot


def found(cache: PrefixCache, tokens: list[int], step: int = 1) -> int:
    """Tokens of the snapshot that a prompt begins from."""
    snapshot = cache.find(tokens, chain_digests(tokens, 4), step)
    return snapshot.num_tokens if snapshot is not None else 0


def use(cache: PrefixCache, snapshot: Snapshot) -> Snapshot:
    cache.use(snapshot)
    cache.check()
    return snapshot


def beginnings_left(cache: PrefixCache, *beginnings: int) -> list[int]:
    return [start for start in beginnings if found(cache, prompt_of(start))]


def prompt_of(start: int) -> list[int]:
    """Five tokens, of which ``add(cache, prompt_of(start)[:4])`` is a snapshot."""
    return list(range(start, start + 5))


def test_the_longest_snapshot_that_the_prompt_goes_on_from_is_found() -> None:
    cache = cache_of(9)
    tokens = list(range(20))
    for length in (4, 9, 10, 12):
        add(cache, tokens[:length])
    lengths = {length: found(cache, tokens[:length]) for length in (4, 5, 8, 9, 10, 11, 12, 13, 20)}
    assert lengths == {4: 0, 5: 4, 8: 4, 9: 4, 10: 9, 11: 10, 12: 10, 13: 12, 20: 12}
    assert found(cache, [*tokens[:9], 49, *tokens[10:]]) == 9
    assert found(cache, [*tokens[:8], 49, *tokens[9:]]) == 4
    assert found(cache, [49, *tokens[1:]]) == 0
    assert cache.has(chain_digests(tokens[:8], 4)[-1], [8])
    assert not cache.has(chain_digests(tokens[:8], 4)[-1], [])


def test_tokens_in_another_place_are_another_prefix() -> None:
    cache = cache_of(2)
    add(cache, [1, 2, 3, 4, 5, 6, 7, 8])
    assert found(cache, [5, 6, 7, 8, 1, 2, 3, 4, 9]) == 0
    assert found(cache, [5, 6, 7, 8, 9]) == 0
    assert found(cache, [258, 3, 4, 5, 6, 7, 8, 9, 9]) == 0


def test_digests_go_on_where_others_ended() -> None:
    tokens = [*range(40), 2**31 - 1, 248_319]
    whole = chain_digests(tokens, 8)
    assert len(set(whole)) == 5
    assert whole == [*chain_digests(tokens[:23], 8), *chain_digests(tokens[16:], 8, whole[1])]


def test_a_snapshot_is_not_found_in_the_step_that_takes_it() -> None:
    cache = cache_of(2)
    add(cache, [1, 2, 3, 4], step=5)
    assert [found(cache, [1, 2, 3, 4, 5], step) for step in (4, 5, 6)] == [0, 0, 4]


def test_snapshots_that_were_used_leave_by_their_last_use() -> None:
    cache = cache_of(3)
    first, second, third = (use(cache, add(cache, prompt_of(start)[:4])) for start in (0, 10, 20))
    use(cache, first)
    add(cache, prompt_of(30)[:4])
    assert beginnings_left(cache, 0, 10, 20, 30) == [0, 20, 30]
    del second, third


def test_prompts_that_never_come_again_leave_half_of_the_room_to_the_others() -> None:
    cache = cache_of(4)
    for start in (0, 10):
        use(cache, add(cache, prompt_of(start)[:4]))
    for start in range(15, 45):
        add(cache, prompt_of(start)[:4])
    assert beginnings_left(cache, 0, 10, *range(15, 45)) == [0, 10, 43, 44]


def test_a_replaced_snapshot_is_the_first_to_leave_and_the_new_one_takes_its_place() -> None:
    cache = cache_of(4)
    old, other = (use(cache, add(cache, prompt_of(start)[:4])) for start in (0, 10))
    new = add(cache, [*prompt_of(0), 6, 7, 8], replaced=old)
    add(cache, prompt_of(20)[:4])
    assert beginnings_left(cache, 0, 10, 20) == [0, 10, 20]  # while there is room it stays
    add(cache, prompt_of(30)[:4])
    assert beginnings_left(cache, 0, 10, 20, 30) == [10, 20, 30]
    for start in range(35, 45):
        add(cache, prompt_of(start)[:4])
    assert beginnings_left(cache, 10, 20, 30) == [10]
    assert found(cache, [*prompt_of(0), 6, 7, 8, 9]) == new.num_tokens
    del other


def test_one_that_has_left_can_be_replaced_no_more() -> None:
    cache = cache_of(1)
    old = use(cache, add(cache, prompt_of(0)[:4]))
    add(cache, prompt_of(10)[:4])
    add(cache, [*prompt_of(0), 6, 7, 8], replaced=old)
    assert beginnings_left(cache, 0, 10) == []


@pytest.mark.parametrize(("num_tokens", "fits"), [(8, True), (24, True), (25, False)])
def test_what_the_budget_can_hold(num_tokens: int, fits: bool) -> None:
    spec: LaunchSpec = small_spec(
        prefix_block_size=4, state_bytes=STATE_BYTES, kv_page_bytes=PAGE_BYTES, page_size=8, prefix_cache_bytes=130
    )
    assert PrefixCache(spec).can_hold(num_tokens) == fits
