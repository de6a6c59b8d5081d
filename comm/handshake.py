"""Both ends of a TCP connection prove that they know the hosts' secret, before either reads anything else.

The listening end sends a random challenge. The other answers with its own and a proof: the HMAC-SHA256 of both, of the
connection's purpose and of its side. Only then does the listening end prove itself. So a stranger gets 32 random bytes,
and its own are read as far as the size of a proof. The proofs say who the peer is; what follows is not encrypted.
"""

import contextlib
import hashlib
import hmac
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from splitrank.comm.errors import CommunicationError, SecretMismatch
from splitrank.comm.stage_socket import receive_into

LEAST_SECRET_BYTES = 16
HANDSHAKE_S = 5.0
_MAGIC = b"splitrh1"
_NONCE_BYTES = _PROOF_BYTES = 32
_MOST_AT_ONCE = 64  # handshakes
_ENOUGH_S = 0.5  # for a handshake, when all places are taken
_RETRY_S = 0.1  # after a connection that could not be accepted

Address = tuple[str, int]


def check_secret(secret: bytes) -> bytes:
    """``ValueError`` for one that could be guessed."""
    if len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(f"the hosts' secret has {len(secret)} bytes, fewer than {LEAST_SECRET_BYTES}")
    return secret


def prove_as_client(stream: socket.socket, secret: bytes, purpose: str, timeout_s: float) -> None:
    """The connecting end. ``CommunicationError`` if the peer is none of ours; ``SecretMismatch`` if its secret seems to
    be another one."""
    seen = bytearray(len(_MAGIC) + _NONCE_BYTES)
    receive_into(stream, memoryview(seen), timeout_s)
    if seen[: len(_MAGIC)] != _MAGIC:
        raise CommunicationError("it speaks another protocol: not a host that waits for others, or another version")
    theirs, own = bytes(seen[len(_MAGIC) :]), secrets.token_bytes(_NONCE_BYTES)
    stream.setblocking(True)
    stream.sendall(own + _proof(secret, "client", purpose, theirs, own))
    answer = bytearray(_PROOF_BYTES)
    try:
        receive_into(stream, memoryview(answer), timeout_s)
    except CommunicationError as error:
        raise SecretMismatch(f"it does not accept our secret ({error})") from error
    if not hmac.compare_digest(bytes(answer), _proof(secret, "server", purpose, own, theirs)):
        raise SecretMismatch("it does not know our secret")


def prove_as_server(stream: socket.socket, secret: bytes, purpose: str, timeout_s: float = HANDSHAKE_S) -> None:
    """The listening end. ``CommunicationError`` if the peer proves nothing within ``timeout_s``, and then it has learnt
    nothing."""
    own = secrets.token_bytes(_NONCE_BYTES)
    stream.setblocking(True)
    stream.sendall(_MAGIC + own)
    seen = bytearray(_NONCE_BYTES + _PROOF_BYTES)
    receive_into(stream, memoryview(seen), timeout_s, limit_s=timeout_s)  # in all: a byte now and then is no proof
    theirs, proof = bytes(seen[:_NONCE_BYTES]), bytes(seen[_NONCE_BYTES:])
    if not hmac.compare_digest(proof, _proof(secret, "client", purpose, own, theirs)):
        raise CommunicationError("a wrong proof")
    stream.setblocking(True)
    stream.sendall(_proof(secret, "server", purpose, theirs, own))


def _proof(secret: bytes, side: str, purpose: str, challenge: bytes, own: bytes) -> bytes:
    message = b"\0".join((_MAGIC, side.encode(), purpose.encode(), challenge + own))
    return hmac.new(secret, message, hashlib.sha256).digest()


class _Places:
    """The places of handshakes under way, a limited number. When all are taken, the address that holds most gives up
    its oldest one to another address, and to a newcomer of its own after ``_ENOUGH_S``. So strangers who say nothing
    keep out only others of their address, and those for half a second."""

    def __init__(self) -> None:
        self._taken: dict[socket.socket, tuple[str, float]] = {}  # address, since when; the oldest first
        self._lock = threading.Lock()

    def take(self, stream: socket.socket, address: str) -> bool:
        with self._lock:
            if len(self._taken) >= _MOST_AT_ONCE and not self._give_one_up(address):
                return False
            self._taken[stream] = address, time.monotonic()
            return True

    def leave(self, stream: socket.socket) -> None:
        with self._lock:
            self._taken.pop(stream, None)

    def _give_one_up(self, newcomer: str) -> bool:
        counts = Counter(address for address, _ in self._taken.values())
        [(most, count)] = counts.most_common(1)
        oldest, since = next((stream, since) for stream, (address, since) in self._taken.items() if address == most)
        if count <= counts[newcomer] + (newcomer != most) and time.monotonic() - since < _ENOUGH_S:
            return False
        del self._taken[oldest]
        with contextlib.suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)  # its thread finds that it has left
        return True


class Doorkeeper:
    """Accepts at a listening socket and hands over the connections that prove themselves, each from its own thread.

    A stranger costs a thread for ``HANDSHAKE_S`` at most, is closed without a word, and delays nobody (``_Places``).
    """

    def __init__(
        self, listener: socket.socket, secret: bytes, purpose: str, on_proven: Callable[[socket.socket, str], None]
    ) -> None:
        self._listener, self._secret, self._purpose, self._on_proven = listener, secret, purpose, on_proven
        self._places = _Places()
        self._closing = threading.Event()
        self.num_refused = 0
        threading.Thread(target=self._accept_all, name="doorkeeper", daemon=True).start()

    def close(self) -> None:
        """Nobody comes in any more."""
        self._closing.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        except OSError:
            pass
        self._listener.close()

    def _accept_all(self) -> None:
        while not self._closing.is_set():
            try:
                self._listener.settimeout(None)
                stream, address = self._listener.accept()
            except OSError:
                # Closed; or that one has left already, or descriptors are used up for now: others may still come.
                self._closing.wait(_RETRY_S)
                continue
            if not self._places.take(stream, str(address[0])):
                stream.close()
                continue
            threading.Thread(target=self._admit, args=(stream, str(address[0])), name="handshake", daemon=True).start()

    def _admit(self, stream: socket.socket, peer: str) -> None:
        try:
            try:
                prove_as_server(stream, self._secret, self._purpose)
            finally:
                self._places.leave(stream)
            send_at_once(stream)
            self._on_proven(stream, peer)
        except (CommunicationError, OSError):
            self.num_refused += 1
            stream.close()


def connect_proven(address: Address, secret: bytes, purpose: str, timeout_s: float) -> socket.socket:
    """A connection to ``address`` whose ends have proved themselves. ``CommunicationError`` says why there is none;
    ``SecretMismatch`` as in ``prove_as_client``."""
    where = f"{address[0]}:{address[1]}"
    try:
        stream = socket.create_connection(address, min(timeout_s, HANDSHAKE_S))
    except OSError as error:
        raise CommunicationError(f"cannot reach {where}: {error.strerror or error}") from error
    try:
        prove_as_client(stream, secret, purpose, timeout_s)
        send_at_once(stream)
    except (CommunicationError, OSError) as error:
        stream.close()
        kind = SecretMismatch if isinstance(error, SecretMismatch) else CommunicationError
        raise kind(f"{where}: {error}") from error
    return stream


def send_at_once(stream: socket.socket) -> None:
    """Small messages do not wait for the acknowledgement of earlier ones."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listen(host: str, port: int = 0) -> socket.socket:
    """A TCP socket that listens at one address; port 0: any free one. ``ValueError`` names the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_MOST_AT_ONCE)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
