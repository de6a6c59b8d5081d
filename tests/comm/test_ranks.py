"""Collectives and the pipeline link between real processes, and what they say when a peer is not as agreed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.comm_rank import TIMEOUT_S
from tests.support.device_link_runs import check_mismatched_headers
from tests.support.forked import ForkedProcess, finish_all
from tests.support.limits import SLACK_S, scaled


def run(scenario: str, folder: Path, world_size: int) -> list[Any]:
    """What each rank printed; None for one that left without a word."""
    ranks = [ForkedProcess("tests.support.comm_rank", scenario, folder, rank) for rank in range(world_size)]
    return [json.loads(text) if text else None for text in finish_all(ranks)]


def test_sums_and_columns_of_unequal_width(tmp_path: Path) -> None:
    seen = run("collectives", tmp_path, 3)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["sum"] == [[111.0 * row] for row in range(4)]
    assert seen[0]["bfloat16"] == [[7.0, 7.0]]
    columns = [0, 1, 2, 10, 20, 21]  # rank times ten plus column
    assert seen[0]["gathered"] == [[100.0 * row + column for column in columns] for row in range(4)]
    assert seen[0]["one row"] == [[200.0 + column for column in columns]]


def test_sums_stay_in_a_stage_and_messages_go_to_the_same_tensor_rank(tmp_path: Path) -> None:
    seen = run("grid", tmp_path, 4)
    assert [rank["sum"] for rank in seen] == [[[11.0]], [[11.0]], [[1100.0]], [[1100.0]]]
    assert [rank["received"] for rank in seen[2:]] == [[[11.0], [22.0]]] * 2


def test_the_link_delivers_every_step_into_aligned_storage(tmp_path: Path) -> None:
    assert run("link", tmp_path, 2)[1] == {str(step): [[1.0, 1.0]] for step in range(9)}


def test_tokens_go_from_the_last_stage_to_the_first(tmp_path: Path) -> None:
    assert run("feedback", tmp_path, 3)[0] == {"tokens": [[step, 2**40 + step] for step in range(4)]}


def test_a_message_that_was_not_agreed_on_is_an_error_that_names_both_sides(tmp_path: Path) -> None:
    seen = run("mismatch", tmp_path, 2)[1]
    check_mismatched_headers(seen)
    assert max(map(float, seen[::2])) < TIMEOUT_S + scaled(SLACK_S)


@pytest.mark.parametrize(
    ("scenario", "rank", "words"),
    [
        ("dead_stage", 1, ("stage 1 waited for stage 0, step 0",)),
        ("silent_stage", 1, ("stage 1 waited for stage 0, step 0",)),
        ("silent_feedback", 0, ("stage 0 waited for stage 1, step 3", "nothing came for 3 s")),
        ("deaf_stage", 0, ("stage 0 waited for stage 1 to take a microbatch",)),
        ("dead_tensor_rank", 1, ("tensor rank 1 of 2: all-reduce failed",)),
        ("silent_tensor_rank", 1, ("tensor rank 1 of 2: all-gather failed",)),
    ],
)
def test_a_dead_or_silent_peer_is_an_error_in_time(
    tmp_path: Path, scenario: str, rank: int, words: tuple[str, ...]
) -> None:
    seconds, error = run(scenario, tmp_path, 2)[rank]
    assert [word for word in words if word not in error] == []
    assert "\n" not in error
    assert float(seconds) < TIMEOUT_S + scaled(SLACK_S)


def test_a_rank_that_nobody_joins_says_so_in_time(tmp_path: Path) -> None:
    seconds, error = run("lonely", tmp_path, 1)[0]
    assert error.startswith("rank 0 (stage 0, tp 0): could not join the other ranks: ")
    assert "\n" not in error
    assert float(seconds) < TIMEOUT_S + scaled(2 * SLACK_S)
