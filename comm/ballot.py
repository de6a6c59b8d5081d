"""A vote of all ranks of a stage, or of all stages: each says that it has done its part, or why not, and gets the
votes of all.

So all ranks make the same decision about a shared resource. A vote is a record of fixed size: no pickle, and no size
must be sent first.
"""

import struct
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from splitrank.comm.errors import CommunicationError
from splitrank.comm.waiting import wait

_TEXT_BYTES, _PAYLOAD_BYTES = 512, 512
_RECORD = struct.Struct(f"<H{_TEXT_BYTES}sH{_PAYLOAD_BYTES}s")


@dataclass(frozen=True)
class Vote:
    """One rank's vote: ``refusal`` is empty if it has done its part; ``payload`` is for the others."""

    refusal: str = ""
    payload: bytes = b""


class Ballot:
    """The ranks of ``group`` (None: all there are) vote. All ranks make the calls in the same order. ``axis``: what a
    rank of this group is called."""

    def __init__(
        self, group: dist.ProcessGroup | None, rank: int, size: int, timeout_s: float, axis: str = "tensor rank"
    ) -> None:
        self._group, self._rank, self._size, self._timeout_s, self._axis = group, rank, size, timeout_s, axis

    def hold(self, vote: Vote, what: str, timeout_s: float | None = None) -> list[bytes]:
        """Every rank's payload; ``CommunicationError`` on every rank if one refused, with its reason."""
        votes = self._exchange(vote, what, timeout_s or self._timeout_s)
        refusals = [f"{self._axis} {rank}: {vote.refusal}" for rank, vote in enumerate(votes) if vote.refusal]
        if refusals:
            raise CommunicationError(f"{what} failed on {'; '.join(refusals)}")
        return [vote.payload for vote in votes]

    def _exchange(self, vote: Vote, what: str, timeout_s: float) -> list[Vote]:
        own = torch.frombuffer(bytearray(_pack(vote)), dtype=torch.uint8)
        all_votes = [torch.empty_like(own) for _ in range(self._size)]
        work = dist.all_gather(all_votes, own, group=self._group, async_op=True)
        wait(work, timedelta(seconds=timeout_s), f"{self._axis} {self._rank} of {self._size}: {what}: no vote")
        return [_unpack(one.numpy().tobytes()) for one in all_votes]


def _pack(vote: Vote) -> bytes:
    text = vote.refusal.encode()[:_TEXT_BYTES]
    assert len(vote.payload) <= _PAYLOAD_BYTES, len(vote.payload)
    return _RECORD.pack(len(text), text, len(vote.payload), vote.payload)


def _unpack(record: bytes) -> Vote:
    text_bytes, text, payload_bytes, payload = _RECORD.unpack(record)
    return Vote(text[:text_bytes].decode(errors="replace"), payload[:payload_bytes])
