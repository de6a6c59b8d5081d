"""What two ranks tell each other while they make a process group: over their own proven connection.

torch's ``TCPStore`` believes whoever connects to it. Here NCCL's unique id, with which anybody could join, goes through
the stream that both ends have proved (``handshake.py``), and no port is opened for it.
"""

import struct
from datetime import timedelta
from socket import socket

from torch._C._distributed_c10d import Store

from splitrank.comm.errors import CommunicationError
from splitrank.comm.stage_socket import receive_into

_SIZES = struct.Struct("<HI")  # bytes of the key and of the value; without a key: the end
_MOST_BYTES = 2**20


class ChannelStore(Store):
    """One of two ends; a value that one end sets can be got at both. Used by one thread, until ``end``."""

    def __init__(self, stream: socket, timeout_s: float) -> None:
        super().__init__()
        self._stream, self._timeout_s = stream, timeout_s
        self._values: dict[str, bytes] = {}
        self._has_ended = False

    def set(self, key: str, value: str | bytes) -> None:
        """After ``end`` nothing is told any more: torch's watchdog would report its errors to all."""
        encoded = value.encode() if isinstance(value, str) else bytes(value)
        self._values[key] = encoded
        if not self._has_ended:
            self._send(key.encode(), encoded)

    def get(self, key: str) -> bytes:
        """Waits for the other end to set it."""
        while key not in self._values:
            if self._has_ended or not self._read():
                raise CommunicationError(f"the other end has not set {key!r}")
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Waits for all of them, for the limit of this store."""
        for key in keys:
            self.get(key)

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def clone(self) -> "ChannelStore":
        """torch asks for one where two threads may wait for a store at once; none waits for this one after ``end``."""
        return self

    def end(self) -> None:
        """Both ends call it: behind it, the stream carries nothing of this store."""
        self._send(b"", b"")
        while not self._has_ended:
            self._read()

    def _send(self, key: bytes, value: bytes) -> None:
        self._stream.settimeout(self._timeout_s)
        try:
            self._stream.sendall(_SIZES.pack(len(key), len(value)) + key + value)
        except OSError as error:
            raise CommunicationError(f"{error.strerror or error}") from error

    def _read(self) -> bool:
        """One value; False at the end."""
        num_key, num_value = _SIZES.unpack(self._receive(_SIZES.size))
        if num_key + num_value > _MOST_BYTES:
            raise CommunicationError(f"a value of {num_value:,} bytes")
        key = self._receive(num_key).decode(errors="replace")
        value = self._receive(num_value)
        if not key:
            self._has_ended = True
            return False
        self._values[key] = value
        return True

    def _receive(self, num_bytes: int) -> bytes:
        buffer = bytearray(num_bytes)
        receive_into(self._stream, memoryview(buffer), self._timeout_s)
        return bytes(buffer)
