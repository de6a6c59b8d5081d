"""The listening socket: its options, and what happens to clients while file descriptors have run out."""

import errno
import os
import socket
from typing import Any

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Listener(socket.socket):
    """Without a descriptor for a client's connection, the connection is closed at once.

    asyncio would leave it waiting, and (CPython 3.11) call ``accept`` thousands of times a second, with a line in the
    log for each. A spare descriptor is kept for this: it is given up for the moment of the refusal.
    """

    _spare = -1

    def keep_a_spare(self) -> None:
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _OUT_OF_DESCRIPTORS or self._spare < 0:
                raise
        self._turn_away()
        raise BlockingIOError(errno.EAGAIN, "out of file descriptors; a client was turned away")

    def close(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()

    def _turn_away(self) -> None:
        os.close(self._spare)
        self._spare = -1
        try:
            super().accept()[0].close()
        finally:
            self.keep_a_spare()


def bind(host: str, port: int) -> Listener:
    """A bound socket. Raises ``ValueError`` with host, port and reason."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = Listener(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.setblocking(False)
            listener.keep_a_spare()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener
