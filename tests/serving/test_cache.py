import pytest

from splitrank.serving.cache import Pool, pages_needed


def test_a_pool_hands_out_each_id_once_and_takes_it_back() -> None:
    pool = Pool(4)
    first, rest = pool.allocate(1), pool.allocate(3)
    assert sorted(first + rest) == [0, 1, 2, 3]
    assert pool.num_free == 0
    pool.free(first)
    assert pool.allocate(1) == first
    pool.check([*first, *rest])


def test_misuse_is_an_assertion() -> None:
    pool = Pool(2)
    [page] = pool.allocate(1)
    with pytest.raises(AssertionError, match="2 ids asked for, 1 of 2 are free"):
        pool.allocate(2)
    pool.free([page])
    with pytest.raises(AssertionError, match="not out"):
        pool.free([page])


@pytest.mark.parametrize("owned", [[], [0, 0], [1]])
def test_check_finds_lost_shared_and_foreign_ids(owned: list[int]) -> None:
    pool = Pool(3)
    assert pool.allocate(1) == [0]
    with pytest.raises(AssertionError):
        pool.check(owned)


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_pages_needed_rounds_up(tokens: int, pages: int) -> None:
    assert pages_needed(tokens, 4) == pages
