"""Hands out ids of KV pages and recurrent-state slots. The ranks own the memory behind them."""


class IdAllocator:
    """The ids 0 to size - 1, each free or taken. To free an id that is not taken is a bug of the caller."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))  # a stack: the id that was freed last is used first
        self._taken: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """``count`` free ids; the caller has checked ``num_free``."""
        assert 0 <= count <= self.num_free, f"{count} ids asked for, {self.num_free} of {self.size} are free"
        ids = [self._free.pop() for _ in range(count)]
        self._taken.update(ids)
        return ids

    def free(self, ids: list[int]) -> None:
        for one in ids:
            assert one in self._taken, f"id {one} is freed, but it is not taken"
            self._taken.remove(one)
        self._free.extend(reversed(ids))

    def check(self, owned: list[int]) -> None:
        """Checks that ``owned``, gathered from all owners, is exactly what is taken, and that no id is lost."""
        assert len(set(owned)) == len(owned), f"an id has two owners: {sorted(owned)}"
        assert set(owned) == self._taken, f"owned {sorted(owned)}, but taken are {sorted(self._taken)}"
        assert len(self._free) + len(self._taken) == self.size, "free and taken ids do not add up"
        assert not self._taken.intersection(self._free), "an id is free and taken"
