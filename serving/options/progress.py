"""Progress of long work: a bar on a terminal, otherwise one plain line every 10 s (for logs)."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from tqdm import tqdm

from splitrank.serving.options.console import lenient

PLAIN_INTERVAL_S = 10.0
SCALED_FROM = 10**6  # totals from here on are bytes, and are shown as 11.0M


class Progress(Protocol):
    """Counts finished items. At the end of its ``with`` block it writes a last line, or the full bar."""

    def update(self, count: int = 1, /) -> object: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress(total: int, description: str, unit: str, *, start: int = 0, show: bool = True) -> Progress:
    """``start``: items done before, by an earlier run. With ``show=False`` nothing is written, else to stderr if it is
    open."""
    stream = None if sys.stderr is None or not show else lenient(sys.stderr)
    if stream is not None and stream.isatty():
        scale = total >= SCALED_FROM
        return tqdm(total=total, initial=start, desc=description, unit=f" {unit}", unit_scale=scale, file=stream)
    return PlainProgress(total, description, unit, start=start, stream=stream)


class PlainProgress:
    """One line at most every ``PLAIN_INTERVAL_S`` and one at the end, with the rate of this run."""

    def __init__(
        self,
        total: int,
        description: str,
        unit: str,
        *,
        start: int = 0,
        stream: TextIO | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._start = self._done = start
        self._stream, self._clock = stream, clock
        self._began = self._printed = clock()

    def update(self, count: int = 1, /) -> None:
        self._done += count
        if self._clock() - self._printed >= PLAIN_INTERVAL_S:
            self._print()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print()

    def _print(self) -> None:
        if self._stream is None:
            return
        self._printed = self._clock()
        seconds = self._printed - self._began
        rate = f", {self._amount((self._done - self._start) / seconds)} {self._unit}/s" if seconds > 0 else ""
        done = f"{self._amount(self._done)} of {self._amount(self._total)} {self._unit}"
        print(f"{self._description}: {done} after {seconds:.0f} s{rate}", file=self._stream, flush=True)

    def _amount(self, count: float) -> str:
        if self._total >= SCALED_FROM:
            return tqdm.format_sizeof(count)
        return str(count) if isinstance(count, int) else f"{count:.2f}"
