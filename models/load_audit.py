"""The audit of a load: every element of a parameter written once, from the element of the file that the plan names.

It judges a record of the copies that were made, taken where they are made, and not the plan: a block that was skipped,
written twice, written to another place or read from another place is found. What a read returned is not looked at; that
is ``verify_weights``.
"""

from dataclasses import dataclass
from math import prod

from splitrank.models.checkpoint import Checkpoint
from splitrank.models.safetensors_header import TensorEntry
from splitrank.models.weight_plan import AuditError, LocalParameter, runs_of


@dataclass(frozen=True)
class Copied:
    """One copy: elements [start, stop) of a parameter, the first of them from ``element`` of the tensor ``entry``."""

    start: int
    stop: int
    entry: TensorEntry
    element: int


def audit_copies(where: str, parameter: LocalParameter, copies: list[Copied], checkpoint: Checkpoint) -> None:
    """Raises ``AuditError``, one line that names ``where`` (the rank), the parameter and the first wrong elements."""
    size, position = prod(parameter.shape), 0
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
        _check_source(where, parameter, copied, checkpoint)
        position = copied.stop
    if position != size:
        raise AuditError(f"{where}: parameter {parameter.name}: element {position} of {size} was not written")


def _check_source(where: str, parameter: LocalParameter, copied: Copied, checkpoint: Checkpoint) -> None:
    for piece in parameter.pieces:
        target = runs_of(parameter.shape, piece.target)
        if target.first <= copied.start < target.first + target.length:
            planned = checkpoint.tensors[piece.tensor]
            element = runs_of(planned.shape, piece.source).at(copied.start - target.first)
            if (planned, element) != (copied.entry, copied.element):
                raise AuditError(
                    f"{where}: parameter {parameter.name}: {_range(copied)} came from element {copied.element} of "
                    f"tensor {copied.entry.name!r} of {copied.entry.file}, the plan names element {element} of "
                    f"{planned.name!r}"
                )
            return
    raise AuditError(f"{where}: parameter {parameter.name}: {_range(copied)} are in no piece of the plan")


def _range(copied: Copied) -> str:
    return f"elements {copied.start} to {copied.stop - 1}"
