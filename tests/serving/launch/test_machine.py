"""Limits of a container, in the files of control groups of both versions, under a fake root."""

import os
from pathlib import Path

import pytest

from splitrank.serving.launch.machine import usable_cores, usable_memory_bytes

CORES = len(os.sched_getaffinity(0))
MEMORY = usable_memory_bytes(Path("no/such/root"))
V2, V1 = "0::/a/b\n", "5:memory:/a/b\n3:cpu,cpuacct:/a/b\n2:cpuset:/other\n0::/\n"


def write(folder: Path, own_groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A root of control groups and a process's table of them."""
    for name, text in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own_groups)
    return folder / "root", folder / "own"


@pytest.mark.parametrize(
    ("own_groups", "files", "cores"),
    [
        (V2, {}, CORES),
        (V2, {"a/b/cpu.max": "max 100000\n"}, CORES),
        (V2, {"a/b/cpu.max": "100000 100000\n"}, 1),
        (V2, {"a/b/cpu.max": "199999 100000\n"}, 1),  # 1.9 cores hold up a second thread every period
        (V2, {"a/b/cpu.max": "50000 100000\n"}, 1),
        (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),  # a parent's limit holds as well
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),  # inside a container, which sees its own group as the root
        (V2, {"a/b/cpu.max": "100000000 100000\n"}, CORES),  # more than there are
        (V2, {"a/b/cpu.max": "\n"}, CORES),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, CORES),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "150000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),  # as a container sees it
        (V1, {"cpu/other/cpu.cfs_quota_us": "1\n", "cpu/other/cpu.cfs_period_us": "100000\n"}, CORES),
    ],
)
def test_cores_of_a_container(tmp_path: Path, own_groups: str, files: dict[str, str], cores: int) -> None:
    assert usable_cores(*write(tmp_path, own_groups, files)) == cores


def test_a_quota_of_several_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores(*write(tmp_path, V2, {"a/b/cpu.max": "450000 100000\n", "a/cpu.max": "800000 100000\n"})) == 4


@pytest.mark.parametrize(
    ("own_groups", "files", "memory"),
    [
        (V2, {}, MEMORY),
        (V2, {"a/b/memory.max": "max\n"}, MEMORY),
        (V2, {"a/b/memory.max": "1000000\n", "a/memory.max": "2000000\n"}, 10**6),
        (V2, {"a/b/memory.max": "2000000\n", "a/memory.max": "1000000\n"}, 10**6),
        (V2, {"memory.max": "1000000\n"}, 10**6),
        (V2, {"a/b/memory.max": f"{2**62}\n"}, MEMORY),
        (V1, {"memory/a/b/memory.limit_in_bytes": "9223372036854771712\n"}, MEMORY),  # how version 1 says none
        (V1, {"memory/a/b/memory.limit_in_bytes": "1000000\n"}, 10**6),
        (V1, {"memory/memory.limit_in_bytes": "1000000\n"}, 10**6),
        (V1, {"memory/other/memory.limit_in_bytes": "1000000\n"}, MEMORY),
    ],
)
def test_memory_of_a_container(tmp_path: Path, own_groups: str, files: dict[str, str], memory: int) -> None:
    assert usable_memory_bytes(*write(tmp_path, own_groups, files)) == memory


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "no", tmp_path / "no") == CORES
    assert usable_memory_bytes(tmp_path / "no", tmp_path / "no") == os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
