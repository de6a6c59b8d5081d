"""Sockets and bytes between the processes: ZeroMQ over ipc in the run folder, msgpack by msgspec, never pickle.

Ranks of other hosts reach the engine over TCP. Then its socket is ZeroMQ's CURVE server, whose key pair is made of the
hosts' secret: only who knows the secret knows the public key, which is never sent, and only the engine has the other.
"""

import hashlib
from collections.abc import Iterator

import msgspec
import zmq
from zmq.utils import z85

from splitrank.comm.position import mesh_position
from splitrank.serving.protocol.messages import EngineToFront, EngineToRank, FrontToEngine, LaunchSpec, RankToEngine

encode = msgspec.msgpack.encode
decode_front_to_engine = msgspec.msgpack.Decoder(FrontToEngine).decode
decode_engine_to_front = msgspec.msgpack.Decoder(EngineToFront).decode
decode_engine_to_rank = msgspec.msgpack.Decoder(EngineToRank).decode
decode_rank_to_engine = msgspec.msgpack.Decoder(RankToEngine).decode

FRONT_BACKLOG = 1000  # unread messages


class _Addressed(msgspec.Struct):
    """The request id in a message that cannot be decoded as a whole."""

    request_id: str


def request_id_of(data: bytes) -> str | None:
    """The id of the request that an unreadable message is about; None if that cannot be read either."""
    try:
        return msgspec.msgpack.decode(data, type=_Addressed).request_id
    except ValueError:
        return None


LINGER_MS = 1000  # a closing socket may deliver its last messages for so long


def front_address(run_dir: str) -> str:
    return f"ipc://{run_dir}/front"


def ranks_address(run_dir: str) -> str:
    return f"ipc://{run_dir}/ranks"


def rank_identity(rank: int) -> bytes:
    return f"rank-{rank}".encode()


def rank_name(spec: LaunchSpec, rank: int) -> str:
    """A rank's name in messages and errors."""
    return str(mesh_position(rank, spec.pp_size, spec.tp_size))


def engine_keys(secret: bytes) -> tuple[bytes, bytes]:
    """CURVE's public and secret key of the engine."""
    key = hashlib.blake2b(secret, digest_size=32, person=b"splitrank-engine").digest()
    encoded = z85.encode(key)
    return zmq.curve_public(encoded), encoded


def bind_ranks(context: zmq.Context[zmq.Socket[bytes]], spec: LaunchSpec, secret: bytes = b"") -> zmq.Socket[bytes]:
    """The engine's socket to the ranks. To send to a rank that is not connected is an error, not a silent loss."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    if secret:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        _, socket.curve_secretkey = engine_keys(secret)
        socket.setsockopt(zmq.IPV6, 1)
        socket.bind(f"tcp://{spec.engine_address}")
    socket.bind(ranks_address(spec.run_dir))
    return socket


def connect_rank(
    context: zmq.Context[zmq.Socket[bytes]], spec: LaunchSpec, identity: bytes, secret: bytes = b""
) -> zmq.Socket[bytes]:
    """A rank's socket to the engine; like any ZeroMQ socket, not thread safe."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    if secret:
        socket.curve_serverkey, _ = engine_keys(secret)
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.setsockopt(zmq.IPV6, 1)
    socket.connect(f"tcp://{spec.engine_address}" if spec.node_rank else ranks_address(spec.run_dir))
    return socket


def connect_front(context: zmq.Context[zmq.Socket[bytes]], spec: LaunchSpec) -> zmq.Socket[bytes]:
    """The engine's socket to the front. The front binds before it starts the engine, so no early message is lost.

    ``FRONT_BACKLOG`` bounds the memory of the socket. While that many messages are unread, the engine keeps its outputs
    and sends them together later. A front that is busy for a moment is no error.
    """
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.SNDHWM, FRONT_BACKLOG)
    socket.connect(front_address(spec.run_dir))
    return socket


def receive_all(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    """Every message that has arrived, without waiting."""
    while True:
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
