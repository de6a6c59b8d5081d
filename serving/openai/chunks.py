"""The events of one streamed answer as bytes. What all of its chunks share is encoded once."""

from typing import Any

import msgspec


class ChunkEvents:
    """``envelope``: the fields of every chunk before ``usage`` and ``choices``. ``shows_usage``: each chunk has a
    ``usage``, null unless it is given."""

    def __init__(self, envelope: dict[str, Any], shows_usage: bool) -> None:
        self._head = b"data: " + msgspec.json.encode(envelope)[:-1]
        self._no_usage = b',"usage":null' if shows_usage else b""

    def part(self, index: int, part: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """What a choice gains. ``part`` is not empty."""
        choice = b',"choices":[{"index":%d,' % index
        return b"".join((self._head, self._usage(usage), choice, msgspec.json.encode(part)[1:], b"]}\n\n"))

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, which has no choices."""
        return b"".join((self._head, self._usage(usage), b',"choices":[]}\n\n'))

    def _usage(self, usage: dict[str, Any] | None) -> bytes:
        return self._no_usage if usage is None else b',"usage":' + msgspec.json.encode(usage)
