"""Sends tensors from stage to stage by torch's process groups of two ranks: NCCL between GPUs of different hosts.

Of each message the header goes by the stream between the two hosts, and the payload from GPU memory to GPU memory. The
receiver enqueues its part when it has seen the header as expected (``message_header.py``): then its peer has enqueued,
or is about to. So hosts wait for each other's launches at most, never for a GPU.

NCCL's own waits have no limit, and name nobody. A thread watches the streams and the messages that are due, and aborts
NCCL when a neighbour has left or is late: what was to be received is then not valid, and ``check`` raises.
"""

import contextlib
import select
import threading
import time
from collections import deque
from dataclasses import dataclass
from socket import SHUT_RDWR, socket

import torch
import torch.distributed as dist

from splitrank.comm.errors import CommunicationError
from splitrank.comm.message_header import make_header, receive_header, waited_for
from splitrank.comm.pair_group import RECEIVER, SENDER, abort_groups, make_groups
from splitrank.comm.position import MeshPosition
from splitrank.comm.stage_socket import Outbox

_WATCH_S = 0.1


@dataclass(frozen=True)
class _Due:
    """A message that must come, or be taken, by ``deadline``."""

    deadline: float
    what: str
    work: dist.Work


class GroupLink:
    """This stage's end: receives from the stage before (stream ``previous``), sends to the next (stream ``following``),
    at equal tensor ranks. Construction is collective over the ring. It owns the streams.

    A stage is ahead of the next by ``max_ahead`` messages at most. Waits ``timeout_s`` at most. On a CPU, where tests
    run it, gloo carries the payload, and the host waits.
    """

    def __init__(
        self,
        position: MeshPosition,
        device: torch.device,
        previous: socket,
        following: socket,
        max_ahead: int,
        timeout_s: float,
    ) -> None:
        self._stage, self._device, self._timeout_s = position.pp_rank, device, timeout_s
        self._source = (position.pp_rank - 1) % position.pp_size
        self._target = (position.pp_rank + 1) % position.pp_size
        self._previous, self._following, self._max_ahead = previous, following, max_ahead
        self._groups = make_groups(position, device, previous, following, timeout_s)
        self._outbox = Outbox(following, max_ahead, timeout_s)
        # A stream of its own, so that a message may come while the step before it is being computed.
        self._receiving = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._sent: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._due: deque[_Due] = deque()
        self._failure: str | None = None
        self._failing = threading.Lock()
        self._closing = threading.Event()
        threading.Thread(target=self._watch, name="stage-link", daemon=True).start()

    def send(self, tensors: tuple[torch.Tensor, ...], step: int, plan_hash: str) -> None:
        """Enqueues one or more tensors of equal shape and dtype, behind what the current stream has been given. They
        are copied, so that they may be changed by what is enqueued next."""
        self.check()
        header = make_header(step, plan_hash, len(tensors), tuple(tensors[0].shape), tensors[0].dtype)
        message = torch.stack(tensors)
        what = f"stage {self._stage} waited for stage {self._target} to take step {step}"
        try:
            self._outbox.put([memoryview(header)])
            self._sent.append((self._groups.following.send([message], RECEIVER, 0), message))
            if len(self._sent) > self._max_ahead:  # then the memory of the oldest is free for the current stream
                self._wait_for(self._sent.popleft()[0], what)
        except (CommunicationError, RuntimeError) as error:
            raise self._failed(f"{what}: {_first_line(error)}") from error

    def receive(
        self, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype, step: int, plan_hash: str
    ) -> tuple[torch.Tensor, ...]:
        """``num_tensors`` of ``shape`` from the stage before: filled when the current stream has come so far."""
        self.check()
        expected = make_header(step, plan_hash, num_tensors, shape, dtype)
        try:
            receive_header(self._previous, expected, self._stage, self._source, step, self._timeout_s)
        except CommunicationError as error:
            raise self._failed(str(error)) from error
        what = waited_for(self._stage, self._source, step)
        try:
            return self._enqueue((num_tensors, *shape), dtype, what).unbind()
        except RuntimeError as error:
            raise self._failed(f"{what}: {_first_line(error)}") from error

    def _enqueue(self, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> torch.Tensor:
        with torch.cuda.stream(self._receiving) if self._receiving is not None else contextlib.nullcontext():
            message = torch.empty(shape, dtype=dtype, device=self._device)
            work = self._groups.previous.recv([message], SENDER, 0)
        self._wait_for(work, what)
        if self._receiving is not None:
            message.record_stream(torch.cuda.current_stream(self._device))
        return message

    def _wait_for(self, work: dist.Work, what: str) -> None:
        """NCCL's works make the current stream wait, and are watched meanwhile; gloo's make the host wait."""
        self._due.append(_Due(time.monotonic() + self._timeout_s, what, work))
        work.wait()

    def check(self) -> None:
        """Raises if any message so far failed. Called after a step, before its result is used."""
        if self._failure is not None:
            raise CommunicationError(self._failure)

    def close(self) -> None:
        """Drops what is under way. The neighbours notice."""
        self._closing.set()
        abort_groups(self._groups)
        for stream in (self._previous, self._following):
            stream.close()

    def _failed(self, reason: str) -> CommunicationError:
        """Keeps the first failure, which says most; ends what the GPU waits for, and tells the neighbours."""
        with self._failing:
            if self._failure is None:
                self._failure = reason
                abort_groups(self._groups)
                for stream in (self._previous, self._following):
                    with contextlib.suppress(OSError):  # the neighbour has left
                        stream.shutdown(SHUT_RDWR)
        return CommunicationError(self._failure)

    def _watch(self) -> None:
        poller = select.poll()
        stages = {self._previous.fileno(): self._source, self._following.fileno(): self._target}
        for descriptor in stages:
            poller.register(descriptor, select.POLLRDHUP)
        while not self._closing.wait(_WATCH_S) and self._failure is None:
            for descriptor, _ in poller.poll(0):
                self._failed(f"stage {self._stage}: stage {stages[descriptor]} has left")
            self._look_at_due()

    def _look_at_due(self) -> None:
        while self._due and self._due[0].work.is_completed():
            self._due.popleft()
        if self._due and time.monotonic() > self._due[0].deadline:
            self._failed(f"{self._due[0].what}: no end within {self._timeout_s:g} s")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
