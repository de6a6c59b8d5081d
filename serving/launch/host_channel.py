"""Messages with another host, over a connection whose ends have proved themselves (``comm/handshake.py``)."""

import queue
import socket
import struct
import threading

import msgspec

from splitrank.comm.errors import CommunicationError
from splitrank.comm.stage_socket import Outbox, receive_into
from splitrank.serving.protocol.host_messages import Beat, HostMessage

BEAT_S = 0.5
_SEND_S = 1.0  # for a message to find room in the socket's buffer
_SIZE = struct.Struct(">I")
_MOST_BYTES = 2**20
_decode = msgspec.msgpack.Decoder(HostMessage).decode


class HostChannel:
    """``send`` and ``poll`` never wait for the other host. A thread reads, another one sends heartbeats.

    ``lost`` says why the other host counts as lost: it has left, or nothing came of it for ``silence_limit_s``.
    """

    def __init__(self, stream: socket.socket, silence_limit_s: float) -> None:
        self.own_address = str(stream.getsockname()[0])
        self.peer_address = str(stream.getpeername()[0])
        self.lost: str | None = None
        self._stream, self._silence_limit_s = stream, silence_limit_s
        self._outbox = Outbox(stream, 1000, _SEND_S)
        self._messages: queue.SimpleQueue[HostMessage] = queue.SimpleQueue()
        self._closing = threading.Event()
        for work in (self._read, self._beat):
            threading.Thread(target=work, name="host-channel", daemon=True).start()

    def send(self, message: HostMessage) -> None:
        """What cannot be sent any more is dropped: then the reading thread finds the other host lost."""
        data = msgspec.msgpack.encode(message)
        try:
            self._outbox.put([memoryview(_SIZE.pack(len(data)) + data)])
        except CommunicationError:
            pass

    def poll(self) -> HostMessage | None:
        """The next message, None if there is none yet."""
        try:
            return self._messages.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """What was sent still arrives."""
        self._closing.set()
        try:
            self._stream.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other host has left

    def _read(self) -> None:
        try:
            while True:
                size = bytearray(_SIZE.size)
                receive_into(self._stream, memoryview(size), self._silence_limit_s)
                (num_bytes,) = _SIZE.unpack(size)
                if num_bytes > _MOST_BYTES:
                    raise CommunicationError(f"it sent a message of {num_bytes:,} bytes")
                data = bytearray(num_bytes)
                receive_into(self._stream, memoryview(data), self._silence_limit_s)
                message = _decode(data)
                if not isinstance(message, Beat):
                    self._messages.put(message)
        except (CommunicationError, OSError, ValueError) as error:
            self.lost = str(error)
        self._closing.wait()  # a host that is not heard may still hear why all ends
        self._stream.close()

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_S):
            self.send(Beat())
