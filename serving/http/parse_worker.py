"""A process that reads large requests: ``python -m splitrank.serving.http.parse_worker FD``, started by ``parsing.py``.

JSON, templates and token ids of megabytes hold Python's lock for seconds; in this process nothing else needs it. The
socket ``FD`` carries msgpack frames, each after its length: a ``Setup``, then ``Work`` and ``Reply`` in turns. A body
follows its ``Work`` unencoded.
"""

import json
import logging
import os
import signal
import socket
import struct
import sys
from dataclasses import replace
from typing import Any

import msgspec

from splitrank.serving.launch.processes import exit_with_parent
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import RequestParser
from splitrank.serving.openai.requests import DirectAnswer, ParsedRequest
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.options.console import be_lenient_with_streams
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.tokenizer import Tokenizer
from splitrank.serving.text.tokenizer_files import TokenizerFiles

LENGTH = struct.Struct("<Q")


class Setup(msgspec.Struct, frozen=True):
    """The arguments of the ``RequestParser``. When the process ``parent_pid`` ends, the worker ends."""

    tokenizer: TokenizerFiles
    info: ModelInfo
    settings: ApiSettings
    parent_pid: int
    log_level: str


class Work(msgspec.Struct, frozen=True):
    url: str
    num_bytes: int  # of the body that follows


class Refusal(msgspec.Struct, frozen=True):
    """An ``ApiError``, field by field."""

    status: int
    message: str
    type: str
    param: str | None
    code: str | None

    def as_error(self) -> ApiError:
        return ApiError(self.status, self.message, type=self.type, param=self.param, code=self.code)


class Reply(msgspec.Struct, frozen=True):
    """One of ``request``, ``direct``, ``refusal`` and ``crash`` is set. ``crash`` is a bug of ours in one line; its
    traceback is in the log.

    ``direct`` is an answer's JSON, which may have a million tokens. What the answer to ``request`` repeats of it,
    ``echo``, is JSON as well: msgpack has no integers beyond 64 bits, and a schema may.
    """

    request: ParsedRequest | None = None
    echo: bytes = b"{}"
    direct: bytes | None = None
    refusal: Refusal | None = None
    crash: str | None = None

    def parsed(self) -> ParsedRequest | DirectAnswer:
        """Raises ``ApiError`` for a refusal."""
        if self.refusal is not None:
            raise self.refusal.as_error()
        if self.direct is not None:
            return DirectAnswer(msgspec.Raw(self.direct))
        if self.request is None:
            raise RuntimeError(f"in the parse worker: {self.crash}")
        return replace(self.request, echo=json.loads(self.echo))


def frame(message: msgspec.Struct) -> bytes:
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


def answer(parser: RequestParser, url: str, body: bytes) -> Reply:
    try:
        parsed = parser.parse(url, body)
        if isinstance(parsed, DirectAnswer):
            return Reply(direct=msgspec.json.encode(parsed.body))
        return Reply(request=replace(parsed, echo={}), echo=msgspec.json.encode(parsed.echo))
    except ApiError as error:
        return Reply(refusal=Refusal(error.status, error.message, error.type, error.param, error.code))
    except Exception as error:
        logging.exception("a request of %d bytes cannot be parsed", len(body))
        return Reply(crash=f"{type(error).__name__}: {error}"[:1000])


def main() -> int:
    be_lenient_with_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    os.nice(5)  # on a busy machine, running answers go first
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rb") as incoming:
        setup = _read(incoming, Setup)
        if setup is None:
            return 0
        exit_with_parent(setup.parent_pid)
        logging.basicConfig(level=setup.log_level.upper(), format="%(asctime)s parse worker: %(message)s")
        parser = RequestParser(Tokenizer(setup.tokenizer), setup.info, setup.settings)
        while (work := _read(incoming, Work)) is not None:
            connection.sendall(frame(answer(parser, work.url, incoming.read(work.num_bytes))))
    return 0


def _read(incoming: Any, kind: type[Any]) -> Any:
    """The next message; None at the end."""
    length = incoming.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    return msgspec.msgpack.decode(incoming.read(LENGTH.unpack(length)[0]), type=kind)


if __name__ == "__main__":
    sys.exit(main())
