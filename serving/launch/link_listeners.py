"""Listening sockets of this host's ranks that get their hidden states, or tokens, from a stage on another host.

They are made before any rank of any host is started, so that no rank has to wait until its neighbour listens. A rank
inherits its own.
"""

import socket

from splitrank.comm.handshake import listen
from splitrank.comm.position import mesh_position, previous_is_elsewhere
from splitrank.serving.launch.run_secret import join_address
from splitrank.serving.protocol.messages import LaunchSpec


class LinkListeners:
    """``addresses`` by rank, as other hosts reach them: at the address ``told``, which is usually ``address``.
    ``ValueError`` if one cannot be made; then none is left."""

    def __init__(self, spec: LaunchSpec, address: str, told: str) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self.addresses: dict[int, str] = {}
        try:
            for rank in spec.local_ranks:
                if previous_is_elsewhere(mesh_position(rank, spec.pp_size, spec.tp_size), spec.ranks_per_node):
                    listener = self._sockets[rank] = listen(address)
                    self.addresses[rank] = join_address(told, listener.getsockname()[1])
        except BaseException:
            self.close()
            raise

    def descriptor(self, rank: int) -> int | None:
        """The rank's socket; None if its stage before is on this host."""
        return self._sockets[rank].fileno() if rank in self._sockets else None

    def close(self) -> None:
        """This process's descriptors; ranks keep theirs."""
        for listener in self._sockets.values():
            listener.close()
        self._sockets = {}
