"""Sends tensors from one pipeline stage to the next, and from the last to the first, by a stream: header and payload.

The payload is read only behind a header as expected (``message_header.py``).
"""

from socket import socket

import torch

from splitrank.comm.errors import CommunicationError
from splitrank.comm.message_header import make_header, receive_header, waited_for
from splitrank.comm.stage_socket import Outbox, receive_into


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
        header = make_header(step, plan_hash, len(tensors), tuple(tensors[0].shape), tensors[0].dtype)
        try:
            self._outbox.put([memoryview(header), *map(_bytes_of, tensors)])
        except CommunicationError as error:
            waited = f"stage {self._pp_rank} waited for stage {self._target} to take a microbatch"
            raise CommunicationError(f"{waited}: {error}") from error

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        """Receives ``num_tensors`` of ``shape`` from the previous stage, each in its own 64-byte-aligned storage."""
        assert self._previous is not None
        expected = make_header(step, plan_hash, num_tensors, shape, dtype)
        receive_header(self._previous, expected, self._pp_rank, self._source, step, self._timeout_s)
        tensors = tuple(torch.empty(shape, dtype=dtype) for _ in range(num_tensors))
        for tensor in tensors:
            self._receive(_bytes_of(tensor), step)
        return tensors

    def _receive(self, buffer: memoryview, step: int) -> None:
        assert self._previous is not None
        try:
            receive_into(self._previous, buffer, self._timeout_s)
        except CommunicationError as error:
            raise CommunicationError(f"{waited_for(self._pp_rank, self._source, step)}: {error}") from error

    def close(self) -> None:
        """Closes the streams; what was not sent yet is dropped."""
        for stream in (self._previous, self._next):
            if stream is not None:
                stream.close()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory."""
    return tensor.view(torch.uint8).numpy().data.cast("B")
