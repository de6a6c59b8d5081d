"""The quick all-reduce of a machine's accelerators, and the stages' mailbox (csrc/bindings/quick_reduce_gpu.cc)."""

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

class _MailboxFailure(TypedDict):
    kind: str
    stage: int
    peer: int
    waits_for_credit: bool
    sequence: int
    seen: int
    expected: tuple[int, int, int, int]
    found: tuple[int, int, int, int]

class Mailbox:
    def __init__(self, stage: int, num_stages: int, num_places: int, part_capacity: int, device: int = 0) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    def handle(self) -> bytes: ...
    def open(self, handles: list[bytes]) -> None: ...
    def send(
        self, parts: list[int], part_bytes: int, kind: int, step: int, plan_hash: int, timeout_ns: int, stream: int = 0
    ) -> bool: ...
    def receive(
        self, parts: list[int], part_bytes: int, kind: int, step: int, plan_hash: int, timeout_ns: int, stream: int = 0
    ) -> bool: ...
    def failure(self) -> _MailboxFailure | None: ...
    def abort(self) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...
