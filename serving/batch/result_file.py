"""The output file: reads what an earlier run finished; appends lines so that a crash tears at most the last one."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec


class _ResultLine(msgspec.Struct, frozen=True):
    """The fields of a result line that a continued run needs; the others are not parsed."""

    id: str
    custom_id: str | None
    error: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True)
class FormerResults:
    """``finished`` maps custom_id to line id. Failed lines and a torn end are not in ``kept``: they are asked again."""

    finished: dict[str, str]
    kept: list[bytes]
    num_failed: int
    torn: bool


def read_former_results(path: Path) -> FormerResults:
    """``ValueError`` names a line that is no result line. A torn *last* line comes from a crash and is dropped."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")
    finished: dict[str, str] = {}
    kept: list[bytes] = []
    for number, line in enumerate(lines[:-1], 1):
        result = _decode(path, number, line)
        if bytes(result.error) != b"null":
            continue
        if result.custom_id is None:
            raise ValueError(f"{path}:{number}: an answer without custom_id; see --overwrite")
        if result.custom_id in finished:
            raise ValueError(f"{path}:{number}: custom_id {result.custom_id!r} stands here twice; see --overwrite")
        finished[result.custom_id] = result.id
        kept.append(line)
    return FormerResults(finished, kept, len(lines) - 1 - len(kept), torn=bool(lines[-1]))


def _decode(path: Path, number: int, line: bytes) -> _ResultLine:
    try:
        return msgspec.json.decode(line, type=_ResultLine)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError(
            f"{path}:{number}: not a result line of this command; name another --output or give --overwrite"
        ) from None


def new_content_path(path: Path) -> Path:
    """Where the new content of ``path`` is written before it takes the old one's place."""
    path = path.resolve()
    return path.with_name(path.name + ".part")


def keep_only(path: Path, lines: list[bytes]) -> None:
    """Replaces the content in one step: after a crash it is the old or the new one. A link stays a link."""
    beside = new_content_path(path)
    with open(beside, "wb") as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path.resolve())


class ResultWriter:
    """Appends whole lines and flushes them to disk in a thread. Lines added during a flush share the next one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115 - closed in __aexit__
        self._pending: list[bytes] = []
        self._wake = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._write_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake.set()
        try:
            await self._task
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError:  # it tries once more to write what could not be written, which is known by then
            if not self._task.done() or self._task.exception() is None:
                raise

    def add(self, line: bytes) -> None:
        """Raises ``OSError`` after a failed write: later results would be lost."""
        if self._task.done():
            self._task.result()
        self._pending.append(line + b"\n")
        self._wake.set()

    async def _write_all(self) -> None:
        while not self._closing or self._pending:
            await self._wake.wait()
            self._wake.clear()
            lines, self._pending = self._pending, []
            if lines:
                await asyncio.to_thread(self._write, b"".join(lines))

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}") from error
