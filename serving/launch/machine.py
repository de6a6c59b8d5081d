"""Cores and memory that this process may use, also inside a container."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")  # the control groups of this process, one line a hierarchy


def usable_cores(root: Path = CGROUP_ROOT, own_groups: Path = OWN_GROUPS) -> int:
    """Cores this process may run on, or a control group's quota if that is less, rounded down; at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu", root, own_groups):
        limit = (
            _numbers(group / "cpu.max") + _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        )
        if len(limit) == 2:  # quota and period; without a quota only the period is a number
            cores = min(cores, limit[0] / limit[1])
    return max(1, int(cores))


def usable_memory_bytes(root: Path = CGROUP_ROOT, own_groups: Path = OWN_GROUPS) -> int:
    """Memory of the host, or of the tightest control group around this process if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root, own_groups):
        limits += _numbers(group / "memory.max") + _numbers(group / "memory.limit_in_bytes")
    return min(limits)


def _groups(controller: str, root: Path, own_groups: Path) -> Iterator[Path]:
    """Folders of the control groups that may limit this process, and of all their parents. Version 2 has one hierarchy,
    version 1 has one for each controller. A container may see its own group as the root."""
    for line in _read(own_groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _numbers(file: Path) -> list[int]:
    """The numbers in the file. "max" and -1 are no numbers; a missing file has none."""
    return [int(word) for word in _read(file).split() if word.isdigit()]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
