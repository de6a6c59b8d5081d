"""ThreadSanitizer over ranks as threads, and over a rank's threads: no race in ours, and it would see one."""

from pathlib import Path

import pytest

from tests.csrc.programs import CSRC, FOLDER, Patch, build, mutated_headers, patched, run

SOURCE = FOLDER / "threads" / "threads.cc"
FLAGS = (
    "-Og",
    "-g1",
    "-fsanitize=thread",
    "-Wno-tsan",
)  # the fence for streaming stores orders nothing that it looks at
REPORTED = 66  # ThreadSanitizer's exit status


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build([SOURCE], tmp_path_factory.mktemp("threads") / "threads", *FLAGS)


@pytest.mark.parametrize(("world_size", "num_calls"), [(2, 60), (4, 60)])
def test_no_race(program: Path, world_size: int, num_calls: int) -> None:
    done = run(program, "shipped", str(world_size), str(num_calls))
    assert done.returncode == 0, done.stderr[:4000]
    assert done.json() == {"ranks": world_size, "calls": num_calls, "bad_ranks": 0}


@pytest.mark.parametrize("executor", ["relaxed-store", "relaxed-poll"])
def test_a_relaxed_flag_is_reported(program: Path, executor: str) -> None:
    done = run(program, executor, "2", "12")
    assert done.returncode == REPORTED
    assert "data race" in done.stderr


def test_a_flag_before_its_data_is_reported(tmp_path: Path) -> None:
    early = Patch(
        "two_shot.h",
        "    QR_DEVICE void send(Sync& sync, uint64_t tile) {\n",
        "    QR_DEVICE void send(Sync& sync, uint64_t tile) {\n        sync.publish(sync.first());\n",
    )
    not_late = Patch(
        "two_shot.h", "        sync.publish(sync.first());\n    }\n\n    // Phase 2", "    }\n\n    // Phase 2"
    )
    headers = mutated_headers(tmp_path / "headers", [not_late, early])
    done = run(build([SOURCE], tmp_path / "threads", *FLAGS, "-DSMALL", headers=headers), "shipped", "2", "12")
    assert done.returncode == REPORTED
    assert "data race" in done.stderr


POOL = CSRC / "cpu" / "threads" / "pool.cc"
COUNTED = "num_done_.fetch_add(1, std::memory_order_release);"


def test_no_race_in_the_pool_of_a_rank(tmp_path: Path) -> None:
    """Nor with units that throw: the caller has all of a job's results when ``run`` returns or throws."""
    done = run(build([FOLDER / "threads" / "jobs.cc", POOL], tmp_path / "pool", *FLAGS))
    assert done.returncode == 0, done.stderr[:4000]
    report = done.json()
    assert report["wrong"] == 0
    assert report["thrown"] > 100


def test_a_pool_that_counts_units_without_a_release_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cc"
    relaxed = Patch("pool.cc", COUNTED, COUNTED.replace("release", "relaxed"))
    broken.write_text(patched(POOL.read_text(encoding="utf-8"), [relaxed]), encoding="utf-8")
    program = build([FOLDER / "threads" / "jobs.cc", broken], tmp_path / "pool", *FLAGS, f"-I{POOL.parent}")
    done = run(program)
    assert done.returncode == REPORTED
    assert "data race" in done.stderr
