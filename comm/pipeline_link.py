"""What crosses from one pipeline stage to the next: a header and a payload a step.

The header carries the step, the plan's hash, and the shape and dtype of the payload; the receiver compares each with
what it expects, and stops with an error that names both sides instead of computing on something else. It travels as a
message of its own, of fixed length: gloo ends the whole process when a message is longer than what was asked for.
"""

import struct
from collections import deque
from datetime import timedelta
from math import prod

import torch
import torch.distributed as dist

from splitrank.comm.errors import CommunicationError
from splitrank.comm.waiting import wait

_HEADER = struct.Struct("<8sq16sqqq")  # magic, step, plan hash, tensors, elements a tensor, dtype code
_MAGIC = b"splitrk1"
_DTYPE_CODES = {torch.bfloat16: 1, torch.float32: 2, torch.float16: 3}


class PipelineLink:
    """Point-to-point between equal tensor ranks of neighbouring stages."""

    def __init__(self, pp_rank: int, pp_size: int, tp_rank: int, tp_size: int, timeout_s: float) -> None:
        self._pp_rank, self._timeout = pp_rank, timedelta(seconds=timeout_s)
        self._next = (pp_rank + 1) * tp_size + tp_rank if pp_rank + 1 < pp_size else None
        self._previous = (pp_rank - 1) * tp_size + tp_rank if pp_rank > 0 else None
        # A send keeps its buffer until the peer took it; a stage runs ahead by at most the microbatches in flight, of
        # two messages each.
        self._pending: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._max_pending = 2 * pp_size

    def send(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> None:
        """Starts sending tensors of equal shape and dtype to the next stage; bounded, in step order."""
        assert self._next is not None
        payload = torch.stack(tensors)  # a copy: the caller may go on with its tensors
        fields = (_MAGIC, step, plan_hash.encode(), len(tensors), tensors[0].numel(), _DTYPE_CODES[payload.dtype])
        header = torch.frombuffer(bytearray(_HEADER.pack(*fields)), dtype=torch.uint8)
        while len(self._pending) >= self._max_pending:
            self._wait_for_oldest()
        for message in (header, payload):
            work = dist.isend(message, self._next)
            assert work is not None
            self._pending.append((work, message))

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        """Receives ``num_tensors`` of ``shape`` from the previous stage, each in its own 64-byte-aligned storage."""
        assert self._previous is not None
        what = f"waited for stage {self._pp_rank - 1}, step {step}"
        header = torch.empty(_HEADER.size, dtype=torch.uint8)
        self._wait(dist.irecv(header, self._previous), what)
        seen = _HEADER.unpack(bytes(header.numpy()))
        expected = (_MAGIC, step, plan_hash.encode(), num_tensors, prod(shape), _DTYPE_CODES[dtype])
        if seen != expected:
            raise CommunicationError(
                f"stage {self._pp_rank} expected {expected[1:]} (step, hash, tensors, elements, dtype) "
                f"from stage {self._pp_rank - 1}, which sent {seen[1:]}"
            )
        payload = torch.empty((num_tensors, *shape), dtype=dtype)
        self._wait(dist.irecv(payload, self._previous), what)
        return tuple(tensor.clone() for tensor in payload)

    def _wait_for_oldest(self) -> None:
        work, _ = self._pending[0]
        self._wait(work, f"waited for stage {self._pp_rank + 1} to take a microbatch")
        self._pending.popleft()

    def _wait(self, work: dist.Work | None, what: str) -> None:
        wait(work, self._timeout, f"stage {self._pp_rank} {what}")
