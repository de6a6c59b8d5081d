import pytest

from splitrank.serving.engine.id_allocator import IdAllocator


def test_an_allocator_hands_out_each_id_once_and_takes_it_back() -> None:
    ids = IdAllocator(4)
    first, rest = ids.allocate(1), ids.allocate(3)
    assert sorted(first + rest) == [0, 1, 2, 3]
    assert ids.num_free == 0
    ids.free(first)
    assert ids.allocate(1) == first
    ids.check([*first, *rest])


def test_misuse_is_an_assertion() -> None:
    ids = IdAllocator(2)
    [page] = ids.allocate(1)
    with pytest.raises(AssertionError, match="2 ids asked for, 1 of 2 are free"):
        ids.allocate(2)
    ids.free([page])
    with pytest.raises(AssertionError, match="not taken"):
        ids.free([page])


@pytest.mark.parametrize("owned", [[], [0, 0], [1]])
def test_check_finds_lost_shared_and_foreign_ids(owned: list[int]) -> None:
    ids = IdAllocator(3)
    assert ids.allocate(1) == [0]
    with pytest.raises(AssertionError):
        ids.check(owned)
