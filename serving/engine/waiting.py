"""Requests that the ranks do not know yet: those that may be admitted, by age, and those whose grammar is compiled."""

from bisect import insort
from collections.abc import Iterator

from splitrank.serving.engine.request import Request


class WaitingRequests:
    """A request whose grammar is not compiled is held beside the queue, and holds up nobody. When it may join, it comes
    behind those of its priority that came meanwhile: its ``number`` is a new one."""

    def __init__(self) -> None:
        self._queue: list[Request] = []  # oldest first
        self._held: dict[str, Request] = {}  # by request id

    def add(self, request: Request) -> None:
        insort(self._queue, request, key=lambda one: one.order)

    def hold(self, request: Request) -> None:
        self._held[request.request_id] = request

    def join(self, request_id: str, numbers: Iterator[int]) -> None:
        """Does nothing for a request that has ended since."""
        request = self._held.pop(request_id, None)
        if request is not None:
            request.renumber(next(numbers))
            self.add(request)

    def remove(self, request: Request) -> None:
        if self._held.pop(request.request_id, None) is None:
            self._queue.remove(request)

    @property
    def first(self) -> Request | None:
        """The oldest that may be admitted."""
        return self._queue[0] if self._queue else None

    @property
    def orders(self) -> list[tuple[int, int]]:
        """``Request.order`` of those that may be admitted, oldest first."""
        orders = [request.order for request in self._queue]
        assert orders == sorted(orders)
        return orders

    def __len__(self) -> int:
        return len(self._queue) + len(self._held)

    def __iter__(self) -> Iterator[Request]:
        yield from self._queue
        yield from self._held.values()
