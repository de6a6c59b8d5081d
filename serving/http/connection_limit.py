"""How many connections a server takes: as many as its file descriptors allow, unless an option says less."""

import resource

from splitrank.serving.http.protocol import NUM_REFUSED_AT_ONCE

# For all but connections: the engine's sockets, parse workers, log. A server of the demo needs some 30.
NUM_RESERVED = 64 + NUM_REFUSED_AT_ONCE
MOST_DESCRIPTORS = 2**16  # no server needs more, even if the system allows a billion


def connection_limit(wanted: int) -> int:
    """``wanted``, or, if that is 0, what is possible. Raises this process's limit of descriptors as far as it may.

    Raises ``ValueError`` with the numbers if there are too few descriptors.
    """
    limit = _raise_limit()
    possible = limit - NUM_RESERVED
    if possible < max(wanted, 1):
        raise ValueError(
            f"{max(wanted, 1)} connection(s) need {max(wanted, 1) + NUM_RESERVED} file descriptors, "
            f"but the limit of this process is {limit} (ulimit -n)"
        )
    return wanted or possible


def _raise_limit() -> int:
    """The limit as it is now. Many systems start processes with 1,024, and allow them more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
