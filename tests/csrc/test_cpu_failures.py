"""What the CPU's compiled all-reduce refuses, and how it fails: never a hang, never a wrong sum."""

import mmap
import os
import struct
import threading
import time
from typing import Any

import pytest
import torch

from splitrank._quick_reduce_cpu import PROTOCOL, Communicator
from tests.csrc.cpu_world import (
    NUM_SLOTS,
    ONE_SHOT,
    REGISTERED,
    SEGMENT_BYTES,
    TAGGED,
    TWO_SHOT,
    World,
    on_threads,
    reduce_on,
)
from tests.support.limits import PROGRAM_S, SLACK_S, scaled

SHORT_S = 0.1
ENDLESS_S = 25.0  # longer than any of these tests: a call that ends under it was ended by somebody
FLAGS_AT, LINE = 4096, 64  # layout.h
FIRST_ODD, SECOND = 1, 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 4, 4096), "world size 3: it must be 1, 2, 4 or 8"),
        ((0, 16, 4, 4096), "world size 16"),
        ((2, 2, 4, 4096), "rank 2 of 2"),
        ((0, 2, 0, 4096), "0 slots: between 1 and 64"),
        ((0, 2, 65, 4096), "65 slots"),
        ((0, 2, 4, 4000), "segments of 4000 bytes: it must be a multiple of 128"),
        ((0, 2, 4, 512), "segments of 512 bytes: .* between 1024 and"),
        ((0, 2, 4, 4096, 1), "a host has one device, 0, not 1"),
        ((0, 2, 4, 4096, 0, "mmx"), 'instruction set "mmx": this machine has baseline'),
    ],
)
def test_shapes_that_do_not_exist(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Communicator(*arguments)


def test_more_memory_than_there_is() -> None:
    with pytest.raises(MemoryError, match=r"no room for \d+ bytes of exchange memory: \d+ bytes are available"):
        Communicator(0, 8, 64, 2**30)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input": 0}, "a null pointer to 256 bytes"),
        ({"input": 8}, "aligned to 16 bytes: the input starts 8 and the output 0 bytes behind"),
        ({"output": 4}, "the input starts 0 and the output 4"),
        ({"output": 64}, "input and output overlap: 64 bytes apart, 256 bytes long"),
        ({"dtype": 3}, "unknown dtype code 3"),
        ({"codec": 4}, "unknown codec code 4"),
        ({"algorithm": 4}, "unknown algorithm code 4"),
        ({"algorithm": REGISTERED}, "for accelerators"),
        ({"algorithm": TAGGED}, "for accelerators"),
        ({"stream": 1}, "a host has no streams"),
    ],
)
def test_arguments_that_do_not_fit(changed: dict[str, int], message: str) -> None:
    """And the communicator works on: a refused call has not begun."""
    memory = torch.zeros(1024)
    start = memory.data_ptr()
    good = {"input": start, "output": start, "num_elements": 64, "dtype": 0, "codec": 0, "algorithm": TWO_SHOT}
    addresses = {name: start + value if value else 0 for name, value in changed.items() if name in ("input", "output")}
    with World(2) as world:
        with pytest.raises(ValueError, match=message):
            world.ranks[0].all_reduce(**{**good, **changed, **addresses}, timeout_ns=10**9)
        for output in world.all_reduce([torch.ones(64)] * 2):
            assert torch.equal(output, torch.full((64,), 2.0))


def test_calls_before_open_and_after_close() -> None:
    communicator = Communicator(0, 2, NUM_SLOTS, SEGMENT_BYTES)
    tensor = torch.ones(64)
    with pytest.raises(RuntimeError, match="not open yet"):
        reduce_on(communicator, tensor)
    communicator.close()
    communicator.close()
    with pytest.raises(RuntimeError, match="is closed"):
        reduce_on(communicator, tensor)
    with pytest.raises(RuntimeError, match="is closed"):
        communicator.handle()
    with pytest.raises(RuntimeError, match="opened once"):
        communicator.open([], NUM_SLOTS)
    communicator.abort()
    assert communicator.failure() is None


def test_handles_that_do_not_fit() -> None:
    own = Communicator(0, 2, NUM_SLOTS, SEGMENT_BYTES)
    peer = Communicator(1, 2, NUM_SLOTS, SEGMENT_BYTES)
    others = {
        "1 handles for 2 ranks": [own.handle()],
        f"protocol 77, this rank speaks {PROTOCOL}": [own.handle(), struct.pack("<I", 77) + peer.handle()[4:]],
        "a handle has 12 bytes": [own.handle(), peer.handle()[:12]],
        "the handle of rank 0 is of rank 1": [peer.handle(), own.handle()],
        "for 4 ranks, not 2": [own.handle(), Communicator(1, 4, NUM_SLOTS, SEGMENT_BYTES).handle()],
        "segments of 8192 bytes, this rank of 4096": [own.handle(), Communicator(1, 2, NUM_SLOTS, 8192).handle()],
        "the handle of rank 1 has 2 slots of 4": [own.handle(), Communicator(1, 2, 2, SEGMENT_BYTES).handle()],
    }
    for message, handles in others.items():
        with pytest.raises(ValueError, match=message):
            own.open(handles, NUM_SLOTS)
    with pytest.raises(ValueError, match="5 slots agreed: this rank has 4"):
        own.open([own.handle(), peer.handle()], NUM_SLOTS + 1)
    token_at = 4 * 4 + 8
    forged = bytearray(peer.handle())
    forged[token_at] ^= 1
    with pytest.raises(RuntimeError, match=rf"process {os.getpid()} is not the rank 1 that made the handle"):
        own.open([own.handle(), bytes(forged)], NUM_SLOTS)
    own.open([own.handle(), peer.handle()], NUM_SLOTS)


def test_different_sizes_are_told_and_not_summed() -> None:
    with World(2) as world:
        sizes = (1000, 2000)
        tensors = [torch.ones(size) for size in sizes]
        assert world.on_every_rank(lambda rank: reduce_on(world.ranks[rank], tensors[rank])) == [False, False]
        assert "mismatch" in world.failure_kinds()
        # The one that looked second may find the other's abort word before the flag.
        assert set(world.failure_kinds()) <= {"mismatch", "aborted"}
        # Poisoned, for every kind of call.
        assert not reduce_on(world.ranks[0], torch.ones(8), limit_s=ENDLESS_S)
        assert not reduce_on(world.ranks[0], torch.empty(0), limit_s=ENDLESS_S)


@pytest.mark.parametrize(
    ("codec", "algorithm", "dtype"),
    [("int8", TWO_SHOT, torch.float32), ("none", ONE_SHOT, torch.float32), ("none", TWO_SHOT, torch.bfloat16)],
)
def test_different_calls_of_one_size(codec: str, algorithm: int, dtype: torch.dtype) -> None:
    with World(2) as world:
        done = on_threads(
            [
                lambda: reduce_on(world.ranks[0], torch.ones(640)),
                lambda: reduce_on(world.ranks[1], torch.ones(640, dtype=dtype), None, codec, algorithm),
            ]
        )
        assert done == [False, False]
        assert "mismatch" in world.failure_kinds()


def test_a_call_that_one_rank_leaves_out() -> None:
    with World(2) as world:
        calls = ([100, 100], [100])

        def work(rank: int) -> list[bool]:
            return [reduce_on(world.ranks[rank], torch.ones(size), limit_s=SHORT_S) for size in calls[rank]]

        assert world.on_every_rank(work) == [[True, False], [True]]
        assert world.failure_kinds() == ["timeout", None]
        assert not reduce_on(world.ranks[1], torch.ones(100), limit_s=ENDLESS_S)
        assert world.failure_kinds() == ["timeout", "aborted"]


def test_two_threads_on_one_communicator() -> None:
    with World(2) as world:
        both = on_threads([lambda: reduce_on(world.ranks[0], torch.ones(64), limit_s=ENDLESS_S)] * 2)
        assert both == [False, False]
        failure = world.ranks[0].failure()
        assert failure is not None
        assert (failure["kind"], failure["expected"] + failure["seen"]) == ("overlap", 3)  # the numbers of both calls


def test_one_shot_has_no_codec_for_four_ranks() -> None:
    message = "only two-shot has codecs among 4 ranks, .*; not algorithm code 0 with codec code 1"
    with World(4) as world, pytest.raises(ValueError, match=message):
        reduce_on(world.ranks[0], torch.ones(64), codec="int8", algorithm=ONE_SHOT)


@pytest.mark.parametrize("end", ["abort", "close"])
def test_another_thread_ends_a_wait(end: str) -> None:
    with World(2) as world:

        def later() -> None:
            time.sleep(SHORT_S)
            getattr(world.ranks[0], end)()

        thread = threading.Thread(target=later)
        thread.start()
        assert not reduce_on(world.ranks[0], torch.ones(64), limit_s=ENDLESS_S)
        thread.join()
        assert not reduce_on(world.ranks[1], torch.ones(64), limit_s=ENDLESS_S)  # the peer is told
        assert world.failure_kinds() == ["aborted", "aborted"]


def test_an_abort_before_the_call() -> None:
    with World(4) as world:
        world.ranks[2].abort()
        done = world.on_every_rank(lambda rank: reduce_on(world.ranks[rank], torch.ones(64), limit_s=ENDLESS_S))
        assert done == [False] * 4
        failures = [communicator.failure() for communicator in world.ranks]
        assert [failure and (failure["kind"], failure["peer"], failure["phase"]) for failure in failures] == [
            ("aborted", 2, 0)
        ] * 4


class ForgedPeer:
    """Rank 1 of 2, played by hand: sees the flags that rank 0 writes to it, and writes flags to rank 0."""

    def __init__(self, world: World) -> None:
        self.regions = [self._map(handle) for handle in world.handles]

    def _map(self, handle: bytes) -> mmap.mmap:
        fd, num_bytes = struct.unpack("<iQ", handle[-12:])
        return mmap.mmap(fd, num_bytes)

    def _flag(self, phase: int) -> slice:
        begin = FLAGS_AT + phase * LINE  # slot 0, the only peer
        return slice(begin, begin + 8)

    def await_flag(self, phase: int) -> int:
        deadline = time.monotonic() + scaled(PROGRAM_S)
        while (flag := int.from_bytes(self.regions[1][self._flag(phase)], "little")) == 0:
            assert time.monotonic() < deadline
        return flag

    def write_flag(self, phase: int, flag: int) -> None:
        self.regions[0][self._flag(phase)] = flag.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("change", "kind", "phase"),
    [
        (0, "timeout", 2),  # all is well with the first phase, then the peer is gone
        (-1, "timeout", 1),  # a flag of the past is waited over
        (1, "ahead", 1),
        (1 << 60, "mismatch", 1),
    ],
)
def test_what_a_flag_can_say(change: int, kind: str, phase: int) -> None:
    with World(2) as world:
        peer = ForgedPeer(world)

        def forge() -> None:
            flag = peer.await_flag(FIRST_ODD)
            peer.write_flag(FIRST_ODD, flag ^ change if change > 1 else flag + change)

        began = time.monotonic()
        # Only what ends by the limit has a short one: the forged flag must come in time.
        limit_s = scaled(0.5) if kind == "timeout" else ENDLESS_S
        done = on_threads([lambda: reduce_on(world.ranks[0], torch.ones(64), limit_s=limit_s), forge])
        assert not done[0]
        assert time.monotonic() - began < scaled(3 * SLACK_S)
        failure = world.ranks[0].failure()
        assert failure is not None
        assert (failure["kind"], failure["phase"], failure["peer"], failure["slot"]) == (kind, phase, 1, 0)
        assert failure["rank"] == 0
        assert failure["seen"] != failure["expected"]
