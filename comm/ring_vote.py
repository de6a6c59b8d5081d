"""The stages of a ring agree on something that each may object to, over the streams between neighbours.

A vote of gloo (``ballot.py``) would not do: gloo does not leave a host.
"""

from socket import socket

from splitrank.comm.errors import CommunicationError
from splitrank.comm.stage_socket import receive_into

_RECORD_BYTES = 256


def first_objection(previous: socket, following: socket, is_first: bool, own: str, timeout_s: float) -> str:
    """The objection of the first stage that has one, the same on all stages; empty if none has. Collective.

    A record goes round twice: the stages put their objections into it, then all read it.
    """
    if is_first:
        _send(following, own, timeout_s)
        result = _receive(previous, timeout_s)
        _send(following, result, timeout_s)
        return _receive(previous, timeout_s)
    _send(following, _receive(previous, timeout_s) or own, timeout_s)
    result = _receive(previous, timeout_s)
    _send(following, result, timeout_s)
    return result


def _send(stream: socket, text: str, timeout_s: float) -> None:
    stream.settimeout(timeout_s)
    try:
        stream.sendall(text.encode()[:_RECORD_BYTES].ljust(_RECORD_BYTES, b"\0"))
    except OSError as error:
        raise CommunicationError(f"{error.strerror or error}") from error


def _receive(stream: socket, timeout_s: float) -> str:
    record = bytearray(_RECORD_BYTES)
    receive_into(stream, memoryview(record), timeout_s)
    return bytes(record).rstrip(b"\0").decode(errors="replace")
