"""The quick all-reduce between accelerators of one machine (csrc/bindings/quick_reduce_gpu.cc)."""

from typing import TypedDict

TARGET: str
PROTOCOL: int

class _Failure(TypedDict):
    kind: str
    rank: int
    slot: int
    phase: int
    peer: int
    expected: int
    seen: int

def device_count() -> int: ...
def default_shape(world_size: int) -> tuple[int, int]: ...

class Communicator:
    def __init__(
        self,
        rank: int,
        world_size: int,
        num_slots: int,
        segment_bytes: int,
        device: int = 0,
    ) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def handle(self) -> bytes: ...
    def max_slots(self) -> int: ...
    def open(self, handles: list[bytes], num_slots: int) -> None: ...
    def all_reduce(
        self,
        input: int,
        output: int,
        num_elements: int,
        dtype: int,
        codec: int,
        algorithm: int,
        timeout_ns: int,
        stream: int = 0,
        num_blocks: int = 0,
        num_threads: int = 0,
        tiles_per_block: int = 0,
        min_tile_bytes: int = 0,
    ) -> bool: ...
    def captured_inputs(self) -> list[bytes]: ...
    def register_inputs(self, by_rank: list[list[bytes]]) -> None: ...
    def failure(self) -> _Failure | None: ...
    def abort(self) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...
