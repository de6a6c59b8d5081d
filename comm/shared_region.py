"""Memory that ranks share, from start to end: each makes its region, all map the others', and none goes before all.

The quick all-reduce and the device link both join and leave so; what they do with the memory is theirs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar

from splitrank.comm.ballot import Ballot, Vote
from splitrank.comm.errors import CommunicationError, one_line

CLOSE_LIMIT_S = 5.0
_REFUSALS = (ValueError, OSError, MemoryError, RuntimeError)


class Region(Protocol):
    """What a native module gives for this rank's memory."""

    def failure(self) -> object | None: ...
    def abort(self) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...


R = TypeVar("R", bound=Region)


def join(
    ballot: Ballot, what: str, make: Callable[[], tuple[R, bytes]], map_peers: Callable[[R, list[bytes]], None]
) -> R:
    """``make`` gives this rank's region and what the others need to map it; ``map_peers`` gets that of all ranks.

    Either all ranks succeed or all raise ``CommunicationError`` with the reason of those that did not.
    """
    region, vote = None, Vote()
    try:
        region, payload = make()
        vote = Vote(payload=payload)
    except _REFUSALS as error:
        vote = Vote(one_line(error))
    try:
        payloads = ballot.hold(vote, what)
        assert region is not None, "its refusal has ended the start"
        refusal = ""
        try:
            map_peers(region, payloads)
        except _REFUSALS as error:
            refusal = one_line(error)
        ballot.hold(Vote(refusal), what)
    except BaseException:
        if region is not None:
            region.close()
        raise
    return region


class RegionOwner(ABC, Generic[R]):
    """This rank's part in shared memory, as ``join`` has given it. Subclasses set the attributes, ``_native`` to None
    where there is none, and say in ``_fail`` what has gone wrong."""

    _native: R | None
    _ballot: Ballot
    _where: str  # the beginning of messages
    _is_cuda: bool
    timeout_s: float

    def check(self) -> None:
        """Raises ``CommunicationError`` if any call so far failed. Called after a step on a device, before its result
        is used."""
        if self._native is not None and self._native.failure() is not None:
            self._fail()

    def abort(self) -> None:
        """Ends the waits of this rank and of all that wait for it; every later call fails."""
        if self._native is not None:
            self._native.abort()

    def close(self) -> None:
        """Frees the memory when all ranks have called it, or after a few seconds without the others. What ``leave``
        says of a device's memory holds."""
        if self._native is None:
            return
        native, self._native = self._native, None
        leave(self._ballot, f"{self._where}: end", native, self._is_cuda, self.timeout_s)

    def _opened(self) -> R:
        if self._native is None:
            raise CommunicationError(f"{self._where}: it is closed")
        return self._native

    @abstractmethod
    def _fail(self, call: str = "") -> NoReturn:
        """Raises the first failure, as all later calls do. ``call`` says which one this is, if any."""


def leave(ballot: Ballot, what: str, region: Region, on_device: bool, timeout_s: float) -> None:
    """Frees the memory when all ranks have called it. After a failure, or without the others, memory of a device stays.

    A host rank unmaps its own view only. But a peer's kernel may still write into a device's memory: unless all peers
    have said that they have left, it stays until the process ends.
    """

    def agree(refusal: str = "") -> bool:
        try:
            ballot.hold(Vote(refusal), what, min(CLOSE_LIMIT_S, timeout_s))
        except CommunicationError:
            return False
        return True

    agreed = agree("" if region.failure() is None else "it has failed")
    if not agreed:
        region.abort()
    if on_device:
        region.leave()
        agreed = agreed and agree()
    if agreed or not on_device:
        region.close()
