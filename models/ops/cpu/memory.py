"""Storage of parameters in host memory."""

import ctypes
import mmap
from math import prod

import torch

from splitrank.models.rounding import ceil_div

_OWN_MAPPING_BYTES = 64 * 2**10
_LIBC = ctypes.CDLL(None)


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised storage, aligned to 64 bytes.

    A large tensor lies in a mapping of its own, which goes back to the system when the tensor does: malloc keeps such
    holes, and they were 200 MB of a rank of 650.
    """
    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes < _OWN_MAPPING_BYTES:
        return torch.empty(shape, dtype=dtype)
    storage = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(storage, dtype=dtype).view(shape)


def release(part: torch.Tensor) -> None:
    """Gives the whole pages under a contiguous ``part`` of a mapping back to the system; its values are lost.

    A stacked weight is packed expert by expert, and would otherwise be held twice until its end.
    """
    start, stop = part.data_ptr(), part.data_ptr() + part.nbytes
    first, last = ceil_div(start, mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)
