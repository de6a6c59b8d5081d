"""Which cores the threads of a rank have for themselves."""

import os

from splitrank.serving.protocol.messages import LaunchSpec


def own_cores(spec: LaunchSpec, rank: int) -> list[int]:
    """One for each of the rank's threads, of those that this process may use; none if threads are not pinned.

    Ranks of a host take them in order. So the threads of a rank are neighbours, and no two ranks share a core.
    """
    usable, here = sorted(os.sched_getaffinity(0)), rank % spec.ranks_per_node
    first, end = here * spec.threads_per_rank, (here + 1) * spec.threads_per_rank
    return usable[first:end] if spec.pin_threads and end <= len(usable) else []


def describe_cores(cores: list[int]) -> str:
    """The cores in words, for the line that a rank says at start."""
    if not cores:
        return "threads on any core"
    return f"core {cores[0]}" if len(cores) == 1 else f"cores {', '.join(map(str, cores))}"
