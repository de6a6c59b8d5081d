"""The events of one streamed answer as bytes. What all of its chunks share is encoded once."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class ChunkEvents:
    """``envelope``: the fields of every chunk before ``usage`` and ``choices``. ``shows_usage``: each chunk has a
    ``usage``, null unless it is given."""

    def __init__(self, envelope: dict[str, Any], shows_usage: bool) -> None:
        self._head = b"data: " + msgspec.json.encode(envelope)[:-1]
        self._no_usage = b',"usage":null' if shows_usage else b""

    def parts(self, index: int, parts: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        """What a choice gains, an event for each part. No part is empty."""
        head = b'%b%b,"choices":[{"index":%d,' % (self._head, self._usage(usage), index)
        return b"".join([b"%b%b]}\n\n" % (head, _encode(part)[1:]) for part in parts])

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, which has no choices."""
        return b"".join((self._head, self._usage(usage), b',"choices":[]}\n\n'))

    def _usage(self, usage: dict[str, Any] | None) -> bytes:
        return self._no_usage if usage is None else b',"usage":' + msgspec.json.encode(usage)
