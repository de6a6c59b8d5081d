"""The cores' flag latency between this process and one other: ``flag_latency.c``, compiled when it is needed."""

import ctypes
import mmap
import statistics
import subprocess
from pathlib import Path

ROUNDS, SAMPLES = 2000, 9
LINE = 64


def compile_probe(folder: Path) -> Path:
    """Before the processes start."""
    library = folder / "flag_latency.so"
    source = Path(__file__).with_name("flag_latency.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    (folder / "flags").write_bytes(bytes(mmap.PAGESIZE))
    return library


class FlagProbe:
    """One of two sides; both call ``measure`` at about the same time."""

    def __init__(self, folder: Path, side: int) -> None:
        self._side, self._count = side, 0
        self._probe = ctypes.CDLL(str(folder / "flag_latency.so")).flag_latency
        self._probe.restype = ctypes.c_double
        self._probe.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
        with open(folder / "flags", "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._flags = [ctypes.addressof(ctypes.c_char.from_buffer(self._memory, LINE * i)) for i in range(2)]

    def measure(self) -> float:
        """Nanoseconds, the median of some samples."""
        return statistics.median(self._sample() for _ in range(SAMPLES))

    def _sample(self) -> float:
        own, peers, start = self._flags[self._side], self._flags[1 - self._side], self._count
        self._count += ROUNDS
        return float(self._probe(own, peers, start, ROUNDS, self._side == 0))
