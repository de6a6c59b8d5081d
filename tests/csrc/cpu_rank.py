"""A rank of the CPU module as a process: ``python -m tests.csrc.cpu_rank RANK WORLD_SIZE [LIMIT_ON_FILE_SIZES]``.

Speaks in lines of JSON: says its handle, is told all handles, then runs call after call as told. No torch: it starts
at once.
"""

import json
import resource
import sys
from typing import Any

import numpy as np

from splitrank._quick_reduce_cpu import Communicator

NUM_SLOTS = 4
SEGMENT_BYTES = 4096


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def run(communicator: Communicator, size: int, repeat: int, limit_s: float) -> dict[str, Any]:
    """Sums ``repeat`` times; rank r brings r + 1 in every element. Ends at the first call that fails."""
    ranks = WORLD_SIZE * (WORLD_SIZE + 1) // 2
    memory = np.empty(size + 4, np.float32)
    tensor = memory[(-memory.ctypes.data % 16) // 4 :][:size]
    for call in range(repeat):
        tensor[:] = RANK + 1
        done = communicator.all_reduce(tensor.ctypes.data, tensor.ctypes.data, size, 0, 0, 1, int(limit_s * 1e9))
        if not done:
            return {"done": call, "failure": communicator.failure()}
        assert (tensor == ranks).all(), f"call {call}: a wrong sum"
    return {"done": repeat, "failure": None}


def main() -> None:
    if len(sys.argv) > 3:
        limit = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        communicator = Communicator(RANK, WORLD_SIZE, NUM_SLOTS, SEGMENT_BYTES)
    except OSError as error:
        say(error=str(error), errno=error.errno)
        return
    say(handle=communicator.handle().hex())
    communicator.open([bytes.fromhex(handle) for handle in json.loads(input())], NUM_SLOTS)
    say(opened=True)
    while line := sys.stdin.readline():
        say(**run(communicator, **json.loads(line)))
    communicator.close()


if __name__ == "__main__":
    RANK, WORLD_SIZE = int(sys.argv[1]), int(sys.argv[2])
    main()
