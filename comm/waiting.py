"""Every wait for a peer: it has a limit, and an error that says who waited for whom."""

from datetime import timedelta

import torch.distributed as dist

from splitrank.comm.errors import CommunicationError


def wait(work: dist.Work | None, timeout: timedelta, what: str) -> None:
    """Waits for ``work``; raises ``CommunicationError`` with ``what`` and gloo's reason."""
    assert work is not None, "torch returns no handle for a group this rank is not in"
    try:
        work.wait(timeout)
    except RuntimeError as error:
        raise CommunicationError(f"{what}: {str(error).splitlines()[0]}") from error
