"""The device link between real processes: on a CPU through shared memory, with the same protocol and the same class."""

from pathlib import Path

from tests.support.device_link_runs import check_dead, check_deaf, check_mismatches, check_silent, run


def test_every_bit_of_messages_both_ways(tmp_path: Path) -> None:
    assert run("both_ways", tmp_path, 2) == [[1500, 0], [1500, 0]]


def test_a_stage_may_be_as_many_messages_ahead_as_there_are_places(tmp_path: Path) -> None:
    assert run("ahead", tmp_path, 2)[1] == [1, 1, 1]


def test_states_go_along_the_ring_and_tokens_back_to_the_first(tmp_path: Path) -> None:
    assert run("ring", tmp_path, 3)[0] == [2.0] * 50


def test_a_message_that_was_not_agreed_on_is_an_error_that_names_both_sides(tmp_path: Path) -> None:
    check_mismatches(run("mismatch", tmp_path, 2)[1])


def test_a_silent_stage_is_an_error_in_time_on_both_sides(tmp_path: Path) -> None:
    check_silent(run("silent_stage", tmp_path, 2))


def test_a_stage_that_reads_nothing_is_an_error_in_time(tmp_path: Path) -> None:
    check_deaf(run("deaf_stage", tmp_path, 2)[0])


def test_a_dead_stage_is_an_error_in_time(tmp_path: Path) -> None:
    check_dead(run("dead_stage", tmp_path, 2)[1])
