"""Types of the compiled modules, for the host and for an accelerator: the quick all-reduce, and the stages' mailbox."""

from importlib import import_module
from typing import Protocol, TypedDict, cast

DEVICE_MODULES = {"cpu": "splitrank._quick_reduce_cpu", "cuda": "splitrank._quick_reduce_gpu"}
ALGORITHM_CODES = {"one-shot": 0, "two-shot": 1, "registered": 2, "tagged": 3}  # csrc/quick_reduce/call.h
CODEC_CODES = {"none": 0, "int8": 1, "int6": 2, "int4": 3}


class Failure(TypedDict):
    """The first thing that went wrong on a rank (csrc/quick_reduce/failure.h)."""

    kind: str
    rank: int
    slot: int
    phase: int
    peer: int
    expected: int
    seen: int


class Communicator(Protocol):
    """One rank's communicator. ``open`` is called after all ranks have exchanged their handles."""

    num_bytes: int

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
        **launch: bool,  # accelerators only: starts_early (csrc/README.md, Early start)
    ) -> bool: ...
    def failure(self) -> Failure | None: ...
    def abort(self) -> None: ...
    def tagged_capacity(self, dtype: int, codec: int) -> int: ...  # accelerators only: elements of the largest call
    def leave(self) -> None: ...  # accelerators only: waits for what is enqueued, and unmaps the peers' memory
    def close(self) -> None: ...


class MailboxFailure(TypedDict):
    """The first thing that went wrong on a stage (csrc/stage_mailbox/mailbox.h). A header is (step, plan hash, bytes of
    a tensor, tensors << 8 | code of their dtype)."""

    kind: str
    stage: int
    peer: int
    waits_for_credit: bool
    sequence: int
    seen: int
    expected: tuple[int, int, int, int]
    found: tuple[int, int, int, int]


class MailboxCall(TypedDict):
    """One message: addresses of its tensors, and what sender and receiver must agree on."""

    parts: list[int]
    part_bytes: int
    kind: int
    step: int
    plan_hash: int
    timeout_ns: int
    stream: int


class Mailbox(Protocol):
    """One stage's mailbox. ``open`` is called after all stages have exchanged their handles."""

    num_bytes: int

    def handle(self) -> bytes: ...
    def open(self, handles: list[bytes]) -> None: ...
    def send(
        self, parts: list[int], part_bytes: int, kind: int, step: int, plan_hash: int, timeout_ns: int, stream: int = 0
    ) -> bool: ...
    def receive(
        self, parts: list[int], part_bytes: int, kind: int, step: int, plan_hash: int, timeout_ns: int, stream: int = 0
    ) -> bool: ...
    def failure(self) -> MailboxFailure | None: ...
    def abort(self) -> None: ...
    def leave(self) -> None: ...  # accelerators only: waits for what is enqueued, and unmaps the neighbours' memory
    def close(self) -> None: ...


class Module(Protocol):
    """The contents of both modules."""

    TARGET: str  # "cpu", "cuda" or "hip"
    PROTOCOL: int

    def device_count(self) -> int: ...
    def default_shape(self, world_size: int) -> tuple[int, int]: ...  # accelerators only
    def Communicator(
        self, rank: int, world_size: int, num_slots: int, segment_bytes: int, device: int = 0
    ) -> Communicator: ...
    def Mailbox(self, stage: int, num_stages: int, num_places: int, part_capacity: int, device: int = 0) -> Mailbox: ...


def load_module(device_type: str) -> Module:
    """The module for tensors of this device type. ``ValueError`` if there is none; it says how to build it."""
    name = DEVICE_MODULES.get(device_type)
    if name is None:
        raise ValueError(f"the quick all-reduce knows the devices {', '.join(DEVICE_MODULES)}, not {device_type!r}")
    try:
        return cast(Module, import_module(name))
    except ImportError as error:
        raise ValueError(f"{name} is not built ({error}); pip install . builds it") from error
