"""Sends tensors from one pipeline stage to the next, and from the last to the first: a header and a payload per step.

The header holds the step, the plan's hash, and the size and dtype of the payload. The receiver compares it with what it
expects. If they differ, it raises an error that shows both, instead of computing with the payload.
"""

import struct
from math import prod
from socket import socket

import torch

from splitrank.comm.errors import CommunicationError
from splitrank.comm.stage_socket import Outbox, receive_into

_HEADER = struct.Struct("<8sq16sqq16s")  # magic, step, plan hash, tensors, elements a tensor, dtype
_MAGIC = b"splitrk1"


class PipelineLink:
    """Receives from stage ``pp_rank - 1`` (stream ``previous``), sends to stage ``pp_rank + 1`` (stream ``next``), at
    equal tensor ranks. A stage is ahead of the next by ``max_ahead`` messages at most. Waits ``timeout_s`` at most.

    After the last stage comes the first, which gets the sampled tokens from it.
    """

    def __init__(
        self, pp_rank: int, pp_size: int, previous: socket | None, next: socket | None, max_ahead: int, timeout_s: float
    ) -> None:
        self._pp_rank, self._timeout_s = pp_rank, timeout_s
        self._source, self._target = (pp_rank - 1) % pp_size, (pp_rank + 1) % pp_size
        self._previous, self._next = previous, next
        self._outbox = Outbox(next, max_ahead, timeout_s) if next is not None else None

    def send(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> None:
        """Starts sending tensors of equal shape and dtype to the next stage, in step order. Do not change them."""
        assert self._outbox is not None
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        header = _header(step, plan_hash, len(tensors), tensors[0].numel(), tensors[0].dtype)
        try:
            self._outbox.put([memoryview(header), *map(_bytes_of, tensors)])
        except CommunicationError as error:
            waited = f"stage {self._pp_rank} waited for stage {self._target} to take a microbatch"
            raise CommunicationError(f"{waited}: {error}") from error

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        """Receives ``num_tensors`` of ``shape`` from the previous stage, each in its own 64-byte-aligned storage."""
        seen = bytes(self._receive(bytearray(_HEADER.size), step))
        expected = _header(step, plan_hash, num_tensors, prod(shape), dtype)
        if seen != expected:
            raise CommunicationError(
                f"stage {self._pp_rank} expected {_fields(expected)} (step, hash, tensors, elements, dtype) "
                f"from stage {self._source}, which sent {_fields(seen)}"
            )
        tensors = tuple(torch.empty(shape, dtype=dtype) for _ in range(num_tensors))
        for tensor in tensors:
            self._receive(_bytes_of(tensor), step)
        return tensors

    def _receive(self, buffer: bytearray | memoryview, step: int) -> bytearray | memoryview:
        assert self._previous is not None
        try:
            receive_into(self._previous, memoryview(buffer), self._timeout_s)
        except CommunicationError as error:
            waited = f"stage {self._pp_rank} waited for stage {self._source}, step {step}"
            raise CommunicationError(f"{waited}: {error}") from error
        return buffer

    def close(self) -> None:
        """Closes the streams; what was not sent yet is dropped."""
        for stream in (self._previous, self._next):
            if stream is not None:
                stream.close()


def _header(step: int, plan_hash: str, num_tensors: int, num_elements: int, dtype: torch.dtype) -> bytes:
    name = str(dtype).removeprefix("torch.")
    return _HEADER.pack(_MAGIC, step, plan_hash.encode(), num_tensors, num_elements, name.encode())


def _fields(header: bytes) -> tuple[int, str, int, int, str]:
    """The fields of a header for an error message. Names of other bytes than text are shown, too."""
    _, step, plan_hash, num_tensors, num_elements, dtype = _HEADER.unpack(header)
    names = [name.rstrip(b"\0").decode(errors="replace") for name in (plan_hash, dtype)]
    return step, names[0], num_tensors, num_elements, names[1]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory."""
    return tensor.view(torch.uint8).numpy().data.cast("B")
