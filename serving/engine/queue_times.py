"""How long requests wait until the first step that computes them. It has no clock: callers pass the time."""

from bisect import bisect_left

from splitrank.serving.protocol.messages import QUEUE_TIME_BUCKETS_S


class QueueTimes:
    """A histogram: ``counts`` by bucket of ``QUEUE_TIME_BUCKETS_S``, not cumulative, the last beyond all bounds; and
    the sum. The time in which a request's grammar is compiled counts, too; time that it is swapped out does not."""

    def __init__(self) -> None:
        self.counts = [0] * (len(QUEUE_TIME_BUCKETS_S) + 1)
        self.sum_s = 0.0
        self._came_at: dict[str, float] = {}  # by request id: those that wait

    def came(self, request_id: str, now: float) -> None:
        self._came_at[request_id] = now

    def admitted(self, request_id: str, now: float) -> None:
        seconds = now - self._came_at.pop(request_id)
        self.counts[bisect_left(QUEUE_TIME_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def gone(self, request_id: str) -> None:
        """It was aborted, maybe before it was admitted."""
        self._came_at.pop(request_id, None)

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._came_at)
