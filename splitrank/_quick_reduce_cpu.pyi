"""The quick all-reduce between processes of one machine (csrc/bindings/quick_reduce_cpu.cc)."""

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
def instruction_sets() -> list[str]: ...

class Communicator:
    def __init__(
        self,
        rank: int,
        world_size: int,
        num_slots: int,
        segment_bytes: int,
        device: int = 0,
        instruction_set: str = "",
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
    ) -> bool: ...
    def failure(self) -> _Failure | None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
