"""What this host offers: cores and memory that this process may use, also inside a container."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")  # the control groups of this process, one line a hierarchy


def usable_cores(root: Path = CGROUP_ROOT, own_groups: Path = OWN_GROUPS) -> int:
    """Cores this process may run on; fewer if a control group's quota is less. A part of a core counts only alone."""
    cores = float(len(os.sched_getaffinity(0)))
    for group in _groups("cpu", root, own_groups):
        limit = (
            _numbers(group / "cpu.max") + _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        )
        if len(limit) == 2:  # quota and period; without a quota the period stands alone
            cores = min(cores, limit[0] / limit[1])
    return max(1, int(cores))


def usable_memory_bytes(root: Path = CGROUP_ROOT, own_groups: Path = OWN_GROUPS) -> int:
    """Memory of the host, or of the tightest control group around this process if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root, own_groups):
        limits += _numbers(group / "memory.max") + _numbers(group / "memory.limit_in_bytes")
    return min(limits)


def _groups(controller: str, root: Path, own_groups: Path) -> Iterator[Path]:
    """Folders of this process's groups that may limit it, and of all groups around those: of version 2, which has one
    hierarchy, and of version 1, which has a folder a controller. A container may see its own group as the root."""
    for line in _read(own_groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _numbers(file: Path) -> list[int]:
    """Those in the file; "max" and -1 are none, and so is a file that is not there."""
    return [int(word) for word in _read(file).split() if word.isdigit()]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
