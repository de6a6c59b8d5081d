"""Audits a load: each element of a parameter was written once, from the element of the file that the plan names.

The audit checks a record of the copies, written where the copies are made. So it finds a block that was skipped,
written twice, written to a wrong place or read from a wrong place. It does not check the bytes that a read returned;
``verify_weights`` does.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import prod

from splitrank.models.checkpoint import Checkpoint
from splitrank.models.safetensors_header import TensorEntry
from splitrank.models.weight_plan import AuditError, LocalParameter, Runs, runs_of


@dataclass(frozen=True)
class Copied:
    """One copy: elements [start, stop) of a parameter, the first of them from ``element`` of the tensor ``entry``."""

    start: int
    stop: int
    entry: TensorEntry
    element: int


@dataclass(frozen=True)
class _Part:
    """A contiguous range of the parameter, and its source in the plan."""

    target: Runs
    source: Runs
    entry: TensorEntry


def audit_copies(where: str, parameter: LocalParameter, copies: list[Copied], checkpoint: Checkpoint) -> None:
    """Raises ``AuditError``, one line that names ``where`` (the rank), the parameter and the first wrong elements."""
    size, position, parts = prod(parameter.shape), 0, _parts(parameter, checkpoint)
    starts = [part.target.first for part in parts]
    for copied in sorted(copies, key=lambda copied: copied.start):
        if not 0 <= copied.start <= copied.stop <= size:
            raise AuditError(f"{where}: parameter {parameter.name}: {_range(copied)} of {size} were written")
        if copied.start > position:
            break
        if copied.start < position:
            raise AuditError(
                f"{where}: parameter {parameter.name}: element {copied.start} of {size} was written twice, "
                f"the second time from tensor {copied.entry.name!r} of {copied.entry.file}"
            )
        index = bisect_right(starts, copied.start) - 1
        if index < 0:
            raise AuditError(f"{where}: parameter {parameter.name}: {_range(copied)} are in no piece of the plan")
        _check_source(f"{where}: parameter {parameter.name}", parts[index], copied)
        position = copied.stop
    if position != size:
        raise AuditError(f"{where}: parameter {parameter.name}: element {position} of {size} was not written")


def _parts(parameter: LocalParameter, checkpoint: Checkpoint) -> list[_Part]:
    """The planned parts, in the order of the parameter's elements."""
    parts = []
    for piece in parameter.contiguous_pieces():
        entry = checkpoint.tensors[piece.tensor]
        parts.append(_Part(runs_of(parameter.shape, piece.target), runs_of(entry.shape, piece.source), entry))
    return sorted(parts, key=lambda part: part.target.first)


def _check_source(what: str, part: _Part, copied: Copied) -> None:
    if copied.start >= part.target.first + part.target.length:
        raise AuditError(f"{what}: {_range(copied)} are in no piece of the plan")
    element = part.source.at(copied.start - part.target.first)
    if (part.entry, element) != (copied.entry, copied.element):
        raise AuditError(
            f"{what}: {_range(copied)} came from element {copied.element} of tensor {copied.entry.name!r} of "
            f"{copied.entry.file}, the plan names element {element} of {part.entry.name!r}"
        )


def _range(copied: Copied) -> str:
    return f"elements {copied.start} to {copied.stop - 1}"
