"""A byte stream between two ranks of one host: a Unix socket whose sender does not wait for the receiver.

gloo's point-to-point calls took two scheduler ticks (8 ms of a 30 ms step) on a machine whose cores are all busy: its
thread spins on a lock whose holder waits for the same core. A socket needs no thread for messages that fit into its
buffer.
"""

import os
import select
import socket
import threading
import time
from collections import deque
from pathlib import Path

from splitrank.comm.errors import CommunicationError

_BUFFER_BYTES = 4 * 2**20  # asked for; the kernel may give less


class StageListener:
    """Listens for the previous stage at ``folder``/``name``; made before the peer connects."""

    def __init__(self, folder: Path, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(folder, name) as path:
            self._socket.bind(path)
        self._socket.listen(1)
        self._path = folder / name

    def accept(self, timeout_s: float) -> socket.socket:
        """The previous stage's connection. Removes the socket's file from the folder."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.accept()[0]
        except TimeoutError as error:
            raise CommunicationError(f"nobody connected to {self._path.name} within {timeout_s:g} s") from error
        finally:
            self.close()

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


def connect(folder: Path, name: str) -> socket.socket:
    """The connection to the next stage, which listens already."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    try:
        with _short_path(folder, name) as path:
            stream.connect(path)
    except OSError as error:
        stream.close()
        raise CommunicationError(f"cannot reach {name}: {error.strerror}") from error
    return stream


class _short_path:
    """A socket's path has 107 bytes at most, and the folder's may be longer: this path goes by an open descriptor."""

    def __init__(self, folder: Path, name: str) -> None:
        self._descriptor, self._name = os.open(folder, os.O_PATH | os.O_DIRECTORY), name

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._descriptor}/{self._name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def receive_into(stream: socket.socket, buffer: memoryview, timeout_s: float, limit_s: float = float("inf")) -> None:
    """Fills ``buffer``; ``CommunicationError`` if the peer leaves, is silent for longer than ``timeout_s``, or takes
    longer than ``limit_s`` for all of it."""
    stream.setblocking(False)
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    deadline = time.monotonic() + limit_s
    while buffer:
        try:
            count = stream.recv_into(buffer)
        except BlockingIOError:
            left = deadline - time.monotonic()
            if not poller.poll(max(0.0, min(timeout_s, left)) * 1000):
                raise CommunicationError(
                    f"nothing came for {timeout_s:g} s" if timeout_s < left else f"not all came within {limit_s:g} s"
                ) from None
            continue
        except OSError as error:
            raise CommunicationError(f"{error.strerror}") from error
        if count == 0:
            raise CommunicationError("it has left")
        buffer = buffer[count:]


class Outbox:
    """Sends messages in order. A thread sends what the socket's buffer does not take at once.

    ``limit`` messages may wait for the thread. The next ``put`` waits until one is sent, for ``timeout_s`` at most.
    """

    def __init__(self, stream: socket.socket, limit: int, timeout_s: float) -> None:
        stream.setblocking(False)
        self._stream, self._limit, self._timeout_s = stream, limit, timeout_s
        self._waiting: deque[list[memoryview]] = deque()
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._thread: threading.Thread | None = None

    def put(self, buffers: list[memoryview]) -> None:
        """Sends one message. Its buffers must not be changed until they are sent."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, self._timeout_s):
                raise CommunicationError(f"nothing was taken for {self._timeout_s:g} s")
            if self._failure is not None:
                raise CommunicationError(self._failure)
            if not self._waiting:
                buffers = self._send_now(buffers)
            if buffers:
                self._waiting.append(buffers)
                self._start_thread()
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._failure is not None or len(self._waiting) < self._limit

    def _send_now(self, buffers: list[memoryview]) -> list[memoryview]:
        """Sends what the socket's buffer takes at once; returns the rest."""
        while buffers:
            try:
                count = self._stream.sendmsg(buffers)
            except BlockingIOError:
                break
            except OSError as error:
                raise CommunicationError(f"{error.strerror}") from error
            buffers = _behind(buffers, count)
        return buffers

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting)
                    buffers = self._waiting[0]
                self._send_all(buffers)
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
        except (CommunicationError, OSError, ValueError) as error:  # ValueError: closed while it waited
            with self._changed:
                self._failure = str(error)
                self._changed.notify_all()

    def _send_all(self, buffers: list[memoryview]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while buffers := self._send_now(buffers):
            left = deadline - time.monotonic()
            poller = select.poll()
            poller.register(self._stream, select.POLLOUT)
            if left <= 0 or not poller.poll(left * 1000):
                raise CommunicationError(f"nothing was taken for {self._timeout_s:g} s")


def _behind(buffers: list[memoryview], count: int) -> list[memoryview]:
    """``buffers`` without their first ``count`` bytes."""
    while buffers and count >= len(buffers[0]):
        count -= len(buffers[0])
        buffers = buffers[1:]
    return [buffers[0][count:], *buffers[1:]] if buffers else []
