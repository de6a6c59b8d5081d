"""How a stage reaches its neighbour on another host.

The connection is TCP, proved by the hosts' secret (``handshake.py``), measured (``link_speed.py``), and from then on
the same byte stream as the socket between stages of one host (``stage_socket.py``).
"""

import queue
import socket
from dataclasses import dataclass, field

from splitrank.comm.errors import CommunicationError
from splitrank.comm.handshake import Address, Doorkeeper, connect_proven
from splitrank.comm.link_speed import LinkSpeed, answer, measure


@dataclass(frozen=True)
class StageNetwork:
    """``ranks_per_host``: see ``ranks_of_host``. ``addresses``: where ranks listen whose stage before is on another
    host. ``listener_fd``: this rank's own listening socket, if it is one of them."""

    ranks_per_host: int
    addresses: dict[int, Address] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    listener_fd: int | None = None

    def connect(self, rank: int, timeout_s: float) -> tuple[socket.socket, LinkSpeed]:
        """The connection to ``rank`` on another host, and its speed. The rank may not have started yet."""
        stream = connect_proven(self.addresses[rank], self.secret, link_name(rank), timeout_s)
        return stream, measure(stream, timeout_s)


def link_name(rank: int) -> str:
    """The name of the stream into ``rank``."""
    return f"link-{rank}"


class NetworkListener:
    """Waits for the stage before, on another host, in a thread: its host need not wait for this one's main thread."""

    def __init__(self, network: StageNetwork, rank: int, timeout_s: float) -> None:
        assert network.listener_fd is not None
        self._name, self._timeout_s = link_name(rank), timeout_s
        self._came: queue.Queue[socket.socket] = queue.Queue()
        listener = socket.socket(fileno=network.listener_fd)
        self._doorkeeper = Doorkeeper(listener, network.secret, self._name, self._measured)

    def _measured(self, stream: socket.socket, peer: str) -> None:
        answer(stream, self._timeout_s)
        self._came.put(stream)

    def accept(self, timeout_s: float) -> socket.socket:
        """The previous stage's connection. Nobody else comes in after it."""
        try:
            return self._came.get(timeout=timeout_s)
        except queue.Empty:
            raise CommunicationError(f"nobody connected to {self._name} within {timeout_s:g} s") from None
        finally:
            self.close()

    def close(self) -> None:
        self._doorkeeper.close()
