"""The histogram of the time that requests wait."""

from splitrank.serving.engine.queue_times import QueueTimes
from splitrank.serving.protocol.messages import QUEUE_TIME_BUCKETS_S


def test_admitted_requests_count_in_the_bucket_of_their_wait() -> None:
    times = QueueTimes()
    for name, came_at in (("a", 0.0), ("b", 1.0), ("c", 1.0), ("d", 2.0)):
        times.came(name, came_at)
    times.admitted("a", 0.0005)
    times.admitted("b", 1.25)  # a bound belongs to its bucket, as Prometheus has it
    times.gone("c")
    times.gone("c")  # an abort of one that runs
    assert len(times) == 1
    times.admitted("d", 1000.0)
    assert len(times) == 0
    expected = [0] * (len(QUEUE_TIME_BUCKETS_S) + 1)
    expected[0] = expected[QUEUE_TIME_BUCKETS_S.index(0.25)] = expected[-1] = 1
    assert (times.counts, times.sum_s) == (expected, 0.0005 + 0.25 + 998.0)
