"""The header of a message between stages: step, the plan's hash, size and dtype of the payload that follows it.

The receiver compares it with what it expects before it reads the payload. If they differ, it raises an error that shows
both, instead of computing with the payload.
"""

import struct
from math import prod
from socket import socket

import torch

from splitrank.comm.errors import CommunicationError
from splitrank.comm.stage_socket import receive_into

_HEADER = struct.Struct("<8sq16sqq16s")  # magic, step, plan hash, tensors, elements a tensor, dtype
_MAGIC = b"splitrk1"


def make_header(step: int, plan_hash: str, num_tensors: int, shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """The header of a message of ``num_tensors`` tensors, each of ``shape``."""
    name = str(dtype).removeprefix("torch.")
    return _HEADER.pack(_MAGIC, step, plan_hash.encode(), num_tensors, prod(shape), name.encode())


def receive_header(stream: socket, expected: bytes, stage: int, source: int, step: int, timeout_s: float) -> None:
    """Reads what ``source`` sends to ``stage``; ``CommunicationError`` if it is not as expected, or does not come."""
    seen = bytearray(_HEADER.size)
    try:
        receive_into(stream, memoryview(seen), timeout_s)
    except CommunicationError as error:
        raise CommunicationError(f"{waited_for(stage, source, step)}: {error}") from error
    if seen != expected:
        raise CommunicationError(
            f"stage {stage} expected {_fields(expected)} (step, hash, tensors, elements, dtype) "
            f"from stage {source}, which sent {_fields(bytes(seen))}"
        )


def waited_for(stage: int, source: int, step: int) -> str:
    """The beginning of an error."""
    return f"stage {stage} waited for stage {source}, step {step}"


def _fields(header: bytes) -> tuple[int, str, int, int, str]:
    """The fields of a header for an error message. Names of other bytes than text are shown, too."""
    _, step, plan_hash, num_tensors, num_elements, dtype = _HEADER.unpack(header)
    names = [name.rstrip(b"\0").decode(errors="replace") for name in (plan_hash, dtype)]
    return step, names[0], num_tensors, num_elements, names[1]
