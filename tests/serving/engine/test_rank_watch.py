from splitrank.serving.engine.rank_watch import RankWatch
from splitrank.serving.protocol.messages import Heartbeat, RankFailed, RankReady
from tests.support.fake_model import small_spec

SPEC = small_spec(tp_size=2, pp_size=2, load_timeout_s=100.0, step_timeout_s=20.0, heartbeat_timeout_s=5.0)


def watch_with(beats: dict[int, int], now: float = 0.0, ready: bool = True) -> RankWatch:
    """``beats``: last finished step by rank."""
    watch = RankWatch(SPEC, 0.0)
    for rank, step in beats.items():
        watch.on_message(Heartbeat(rank, "serve", step), now)
        if ready:
            watch.on_message(RankReady(rank, f"report {rank}"), now)
    return watch


def test_ready_when_every_rank_is_and_reports_are_in_rank_order() -> None:
    watch = watch_with({3: -1, 1: -1, 0: -1})
    assert not watch.all_ready
    watch.on_message(RankReady(2, "report 2", "stage 1"), 1.0)
    assert watch.all_ready
    assert watch.reports == ["report 0", "report 1", "report 2", "report 3", "stage 1"]


def test_a_silent_rank_is_named_with_what_it_did_last() -> None:
    watch = watch_with(dict.fromkeys(range(4), 6))
    for rank in (0, 1, 3):
        watch.on_message(Heartbeat(rank, "serve", 7), 4.0)
    assert watch.find_failure(5.0, None, 0.0) is None
    assert watch.find_failure(5.1, None, 0.0) == (
        "rank 2 (stage 1, tp 0) has been silent for more than 5 s; phase serve, last finished step 6"
    )


def test_a_rank_that_falls_silent_before_its_first_heartbeat_is_noticed() -> None:
    watch = RankWatch(SPEC, 0.0)
    watch.on_message(RankReady(1, ""), 1.0)
    failure = watch.find_failure(6.1, None, 0.0)
    assert failure == "rank 1 (stage 0, tp 1) has been silent for more than 5 s; no heartbeat yet"


def test_a_late_start_names_those_that_are_not_ready_and_first_who_has_said_nothing() -> None:
    watch = RankWatch(SPEC, 0.0)
    watch.on_message(RankReady(0, ""), 99.0)
    watch.on_message(RankReady(3, ""), 99.0)
    watch.on_message(Heartbeat(1, "load", -1), 99.0)
    assert watch.find_failure(100.0, None, 0.0) is None
    assert watch.find_failure(100.1, None, 0.0) == (
        "not ready after 100 s: rank 2 (stage 1, tp 0), no heartbeat yet; "
        "rank 1 (stage 0, tp 1), phase load, no step finished yet"
    )


def test_an_overdue_step_names_who_has_not_finished_it() -> None:
    watch = watch_with({0: 9, 1: 8, 2: 8, 3: 9}, now=29.0)
    assert watch.find_failure(30.0, 9, 10.0) is None
    failure = watch.find_failure(30.1, 9, 10.0)
    assert failure == (
        "step 9 is not done after 20 s: rank 1 (stage 0, tp 1), phase serve, last finished step 8; "
        "rank 2 (stage 1, tp 0), phase serve, last finished step 8"
    )
    assert watch.find_failure(30.1, None, 10.0) is None


def test_the_first_rank_that_gave_up_is_the_cause() -> None:
    watch = watch_with(dict.fromkeys(range(4), 3))
    watch.on_message(RankFailed(1, "step 4", "no memory"), 1.0)
    watch.on_message(RankFailed(0, "step 4", "peer closed"), 1.0)
    assert watch.find_failure(1000.0, 4, 0.0) == "rank 1 (stage 0, tp 1) failed in step 4: no memory"


def test_stats_have_the_age_and_the_words_of_the_last_heartbeat() -> None:
    watch = watch_with({0: 4, 1: 5, 2: 5}, now=1.0)
    watch.on_message(RankReady(3, "report 3"), 2.5)  # no heartbeat yet
    watch.on_message(Heartbeat(1, "step 7", 6), 3.0)
    stats = watch.stats(4.0)
    assert [one.heartbeat_age_s for one in stats] == [3.0, 1.0, 3.0, 1.5]
    assert [(one.phase, one.last_step) for one in stats[1:]] == [("step 7", 6), ("serve", 5), ("serve", -1)]
