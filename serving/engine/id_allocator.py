"""Who owns which KV page and which recurrent-state slot. Counts and ids only: the memory itself is the ranks'."""


class IdAllocator:
    """The ids 0..size-1, each free or handed out. Giving back what is not out is a bug of the caller's."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))  # a stack: the id freed last is the first to be used again
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """``count`` ids; the caller has checked ``num_free``."""
        assert 0 <= count <= self.num_free, f"{count} ids asked for, {self.num_free} of {self.size} are free"
        ids = [self._free.pop() for _ in range(count)]
        self._taken.update(ids)
        return ids

    def free(self, ids: list[int]) -> None:
        for one in ids:
            assert one in self._taken, f"id {one} is given back, but it is not out"
            self._taken.remove(one)
        self._free.extend(reversed(ids))

    def check(self, owned: list[int]) -> None:
        """``owned``, gathered from the owners, is exactly what is out, and nothing is lost."""
        assert len(set(owned)) == len(owned), f"an id has two owners: {sorted(owned)}"
        assert set(owned) == self._taken, f"owned {sorted(owned)}, but out are {sorted(self._taken)}"
        assert len(self._free) + len(self._taken) == self.size, "free and taken ids do not add up"
        assert not self._taken.intersection(self._free), "an id is free and taken"
