"""Rounding up: division, powers of two, and the number of KV pages of a sequence. No torch, no numpy."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # ``splitrank plan`` starts without numpy
    import numpy as np
    import numpy.typing as npt

Integers = TypeVar("Integers", int, "npt.NDArray[np.int64]")


def ceil_div(number: Integers, divisor: int) -> Integers:
    """``number`` / ``divisor``, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """The least power of two of at least ``number``; 1 from 1 down. Triton's own takes 20 times as long on the host."""
    return 1 << max(number - 1, 0).bit_length()


def pages_needed(num_tokens: Integers, page_size: int) -> Integers:
    """KV pages that hold ``num_tokens`` tokens. Engine and ranks count with this one function."""
    return ceil_div(num_tokens, page_size)
