"""What crosses from one pipeline stage to the next: one message a step, its size known to both sides from the plan.

A message is 64 bytes of header (so that the payload behind it stays 64-byte aligned) and the tensors' bytes. The header
carries the step, the plan's hash, and the shape and dtype of the payload; the receiver compares each with what it
expects, and stops with an error that names both sides instead of computing on something else.
"""

import struct
from collections import deque
from datetime import timedelta

import torch
import torch.distributed as dist

from splitrank.comm.errors import CommunicationError
from splitrank.comm.waiting import wait

_HEADER_BYTES = 64
_HEADER = struct.Struct("<8sq16sqqq")  # magic, step, plan hash, tensors, elements a tensor, dtype code
_MAGIC = b"splitrk1"
_DTYPE_CODES = {torch.bfloat16: 1, torch.float32: 2, torch.float16: 3}


class PipelineLink:
    """Point-to-point between equal tensor ranks of neighbouring stages."""

    def __init__(self, pp_rank: int, pp_size: int, tp_rank: int, tp_size: int, timeout_s: float) -> None:
        self._pp_rank, self._timeout = pp_rank, timedelta(seconds=timeout_s)
        self._next = (pp_rank + 1) * tp_size + tp_rank if pp_rank + 1 < pp_size else None
        self._previous = (pp_rank - 1) * tp_size + tp_rank if pp_rank > 0 else None
        # A send keeps its buffer until the peer took it; a stage runs ahead by at most the microbatches in flight.
        self._pending: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._max_pending = pp_size

    def send(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> None:
        """Starts sending tensors of equal shape and dtype to the next stage; bounded, in step order."""
        assert self._next is not None
        first = tensors[0]
        header = _HEADER.pack(
            _MAGIC, step, plan_hash.encode(), len(tensors), first.numel(), _DTYPE_CODES[first.dtype]
        ).ljust(_HEADER_BYTES, b"\0")
        message = torch.empty(_HEADER_BYTES + sum(t.nbytes for t in tensors), dtype=torch.uint8)
        message[:_HEADER_BYTES] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        offset = _HEADER_BYTES
        for tensor in tensors:
            assert (tensor.shape, tensor.dtype) == (first.shape, first.dtype)
            message[offset : offset + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
            offset += tensor.nbytes
        while len(self._pending) >= self._max_pending:
            self._wait_for_oldest()
        work = dist.isend(message, self._next)
        assert work is not None
        self._pending.append((work, message))

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        """Receives ``num_tensors`` of ``shape`` from the previous stage, each in its own 64-byte-aligned storage."""
        assert self._previous is not None
        tensors = [torch.empty(shape, dtype=dtype) for _ in range(num_tensors)]
        nbytes = tensors[0].nbytes
        message = torch.empty(_HEADER_BYTES + num_tensors * nbytes, dtype=torch.uint8)
        self._wait(dist.irecv(message, self._previous), f"waited for stage {self._pp_rank - 1}, step {step}")
        seen = _HEADER.unpack(bytes(message[: _HEADER.size].numpy()))
        expected = (_MAGIC, step, plan_hash.encode(), num_tensors, tensors[0].numel(), _DTYPE_CODES[dtype])
        if seen != expected:
            raise CommunicationError(
                f"stage {self._pp_rank} expected {expected[1:]} (step, hash, tensors, elements, dtype) "
                f"from stage {self._pp_rank - 1}, which sent {seen[1:]}"
            )
        for i, tensor in enumerate(tensors):
            start = _HEADER_BYTES + i * nbytes
            tensor.view(-1).view(torch.uint8).copy_(message[start : start + nbytes])
        return tuple(tensors)

    def _wait_for_oldest(self) -> None:
        work, _ = self._pending[0]
        self._wait(work, f"waited for stage {self._pp_rank + 1} to take a microbatch")
        self._pending.popleft()

    def _wait(self, work: dist.Work | None, what: str) -> None:
        wait(work, self._timeout, f"stage {self._pp_rank} {what}")
