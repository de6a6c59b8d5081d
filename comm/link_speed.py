"""Measures a new connection between hosts: its round trip and its bandwidth, before it carries anything else."""

import socket
import statistics
import time
from dataclasses import dataclass

from splitrank.comm.stage_socket import receive_into

_PINGS = 20
_WARM_UP_BYTES, _TIMED_BYTES = 4 * 2**20, 8 * 2**20  # the first ones open TCP's window


@dataclass(frozen=True)
class LinkSpeed:
    """``round_trip_s``: median; ``bytes_per_s``: of one direction."""

    round_trip_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return f"{self.bytes_per_s * 8 / 1e9:.2f} Gb/s, round trip {self.round_trip_s * 1e3:.2f} ms"


def measure(stream: socket.socket, timeout_s: float) -> LinkSpeed:
    """The connecting end; the other calls ``answer``. ``CommunicationError`` if nothing comes back in time."""
    trips = [_send_and_wait(stream, b"\1", timeout_s) for _ in range(_PINGS)]
    round_trip = statistics.median(trips)
    _send_and_wait(stream, bytes(_WARM_UP_BYTES), timeout_s)
    seconds = _send_and_wait(stream, bytes(_TIMED_BYTES), timeout_s)
    return LinkSpeed(round_trip, _TIMED_BYTES / max(seconds - round_trip / 2, 1e-9))


def answer(stream: socket.socket, timeout_s: float) -> None:
    """The listening end: acknowledges what ``measure`` sends."""
    buffer = memoryview(bytearray(_TIMED_BYTES))
    for num_bytes in (*[1] * _PINGS, _WARM_UP_BYTES, _TIMED_BYTES):
        receive_into(stream, buffer[:num_bytes], timeout_s)
        stream.setblocking(True)
        stream.sendall(b"\1")


def _send_and_wait(stream: socket.socket, data: bytes, timeout_s: float) -> float:
    """Seconds until ``data`` was acknowledged."""
    start = time.perf_counter()
    stream.settimeout(timeout_s)
    stream.sendall(data)
    receive_into(stream, memoryview(bytearray(1)), timeout_s)
    return time.perf_counter() - start
