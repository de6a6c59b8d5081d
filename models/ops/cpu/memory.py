"""Storage of parameters in host memory."""

import ctypes
import mmap
from math import prod

import torch

from splitrank.models.rounding import ceil_div

_OWN_MAPPING_BYTES = 64 * 2**10
_HUGE_PAGE_BYTES = 2 * 2**20
_MADV_HUGEPAGE = 14  # Linux's; Python has a name for it only where its own headers had one
_LIBC = ctypes.CDLL(None)


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised storage, aligned to 64 bytes.

    A large tensor lies in a mapping of its own, which goes back to the system when the tensor does: malloc keeps such
    holes, and they were 200 MB of a rank of 650. Where it is wide enough, it begins at a huge page and asks for such:
    weights are read from end to end in each step, which takes a third longer through pages of 4 KiB.
    """
    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes < _OWN_MAPPING_BYTES:
        return torch.empty(shape, dtype=dtype)
    whole = num_bytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES  # the rest stays in small pages, so that no byte is added
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    storage = mmap.mmap(-1, num_bytes + (_HUGE_PAGE_BYTES if whole else 0), flags=flags)
    offset = 0
    if whole:
        address = torch.frombuffer(storage, dtype=torch.uint8).data_ptr()
        offset = -address % _HUGE_PAGE_BYTES
        _advise(address + offset, whole, _MADV_HUGEPAGE)
    return torch.frombuffer(storage, dtype=dtype, count=prod(shape), offset=offset).view(shape)


def release(part: torch.Tensor) -> None:
    """Gives the whole pages under a contiguous ``part`` of a mapping back to the system; its values are lost.

    A stacked weight is packed expert by expert, and would otherwise be held twice until its end.
    """
    start, stop = part.data_ptr(), part.data_ptr() + part.nbytes
    first, last = ceil_div(start, mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        _advise(first, last - first, mmap.MADV_DONTNEED)


def _advise(address: int, num_bytes: int, advice: int) -> None:
    """A kernel that knows no such advice goes on without it."""
    _LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), advice)
