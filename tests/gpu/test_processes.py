"""Ranks as processes: CUDA graphs, streams, ranks that fail, and ranks that share a GPU. The programs are run by every
rank; a hang ends at the limit of ``run_ranks``."""

import time
from typing import Any

import pytest
import torch

from splitrank.comm.errors import CommunicationError
from splitrank.comm.quick_reduce import QuickAllReduce, RegionShape
from tests.gpu.ranks import Rank, run_ranks
from tests.support.quick_reduce_spec import expected_sum

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]  # ranks share a GPU if there is but one

CODECS = ("none", "int8", "int6", "int4")
WAYS = [("one-shot", "none"), *(("two-shot", codec) for codec in CODECS)]
TAGGED = [("tagged", codec) for codec in CODECS]
TWO_RANKS_WAYS = [*WAYS, *(("one-shot", codec) for codec in CODECS[1:]), *TAGGED]


def failure_kind(quick: QuickAllReduce) -> str | None:
    native: Any = quick._native
    torch.cuda.synchronize()
    record = native.failure()
    return record["kind"] if record else None


def bits_program(rank: Rank) -> int:
    quick = rank.make_quick()
    checked = 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for count in (1, 33, 4096, 100_003, 1 << 22):
            for algorithm, codec in TWO_RANKS_WAYS:
                tensor = rank.part(count, count, dtype).cuda()
                found = quick.all_reduce(tensor, None, algorithm, codec).cpu()
                quick.check()
                assert torch.equal(found, expected_sum(rank.parts(count, count, dtype), codec, algorithm)), (
                    count,
                    dtype,
                    algorithm,
                    codec,
                )
                checked += 1
    quick.close()
    return checked


def test_sums_of_two_gpus_have_the_bits_of_the_specification() -> None:
    assert run_ranks(bits_program) == [180, 180]


def captured(rank: Rank, quick: QuickAllReduce, sizes: list[int], way: tuple[str, str]) -> Any:
    """A graph of one call for each size, its inputs and its outputs."""
    inputs = [rank.part(count, count).cuda() for count in sizes]
    outputs = [torch.empty_like(tensor) for tensor in inputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for tensor, output in zip(inputs, outputs, strict=True):
            quick.all_reduce(tensor, output, *way)
    if way[0] == "registered":
        rank.register(quick)
    return graph, inputs, outputs


def graph_program(rank: Rank) -> int:
    """Replayed with new inputs each time, so that a stale flag or sum shows."""
    quick = rank.make_quick()
    small = RegionShape(6, 4096)
    other = rank.make_quick(shape=small)
    replays = 0
    for way in [*TWO_RANKS_WAYS, ("registered", "none")]:
        largest = 1 << 17 if way in TAGGED else 1 << 21  # what the small communicator takes of tagged words
        for sizes in ([4096], [largest, 64, 4096, 32]):
            for one in (quick, other):
                graph, inputs, outputs = captured(rank, one, sizes, way)
                for number in range(1000):
                    scale = float(number % 7 - 3)
                    for tensor, count in zip(inputs, sizes, strict=True):
                        tensor.fill_(scale * (rank.rank + 1) + count % 5)
                    graph.replay()
                    replays += 1
                    if number % 100 == 99:
                        one.check()
                        for output, count in zip(outputs, sizes, strict=True):
                            exact = scale * 3 + 2 * (count % 5)
                            bound = 0.0 if way[1] == "none" else 0.1 * (abs(exact) + 12)
                            assert bool(((output - exact).abs() <= bound).all()), (way, sizes, number)
    other.close()
    quick.close()
    return replays


@pytest.mark.gpu(count=2)
def test_graphs_replayed_a_thousand_times() -> None:
    """One call, and a large call followed by small ones; two communicators of different sizes."""
    assert run_ranks(graph_program, limit_s=280) == [52_000, 52_000]


def registered_program(rank: Rank) -> str:
    quick = rank.make_quick()
    sizes = [1, 33, 4096, 65_536, 1 << 20]
    graph, inputs, outputs = captured(rank, quick, sizes, ("registered", "none"))
    for seed in range(3):
        for tensor, count in zip(inputs, sizes, strict=True):
            tensor.copy_(rank.part(count, count + seed))
        graph.replay()
        quick.check()
        for output, count in zip(outputs, sizes, strict=True):
            assert torch.equal(output.cpu(), expected_sum(rank.parts(count, count + seed)))
    with pytest.raises(ValueError, match="captured"):
        quick.all_reduce(inputs[0], outputs[0], "registered")
    unprepared = torch.cuda.CUDAGraph()
    with torch.cuda.graph(unprepared):
        quick.all_reduce(inputs[2], outputs[2], "registered")
    unprepared.replay()
    return str(failure_kind(quick))


def test_registered_inputs_and_a_graph_replayed_before_they_were_exchanged() -> None:
    kinds = run_ranks(registered_program)
    assert "mismatch" in kinds
    assert set(kinds) <= {"mismatch", "aborted"}


def side_stream_program(rank: Rank) -> bool:
    quick = rank.make_quick()
    first, second = rank.part(1 << 20, 1).cuda(), rank.part(4096, 2).cuda()
    graph = torch.cuda.CUDAGraph()
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph):
        quick.all_reduce(first)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            quick.all_reduce(second)
        torch.cuda.current_stream().wait_stream(side)
    for _ in range(100):
        first.copy_(rank.part(1 << 20, 1))
        second.copy_(rank.part(4096, 2))
        graph.replay()
    quick.check()
    assert torch.equal(first.cpu(), expected_sum(rank.parts(1 << 20, 1)))
    assert torch.equal(second.cpu(), expected_sum(rank.parts(4096, 2)))
    quick.close()
    return True


def test_streams_ordered_by_events_are_legal() -> None:
    assert run_ranks(side_stream_program) == [True, True]


def overlap_program(rank: Rank) -> str | None:
    quick = rank.make_quick()
    tensors = [torch.ones(1 << 20, device="cuda") for _ in range(2)]
    streams: list[Any] = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    if rank.rank == 1:
        time.sleep(0.5)  # rank 0's first call is waiting when its second one comes
    for stream, tensor in zip(streams, tensors, strict=True):
        with torch.cuda.stream(stream):
            quick.all_reduce(tensor)
    return failure_kind(quick)


def test_overlapping_calls_are_found_on_the_device() -> None:
    kinds = run_ranks(overlap_program)
    assert kinds[0] == "overlap"
    assert kinds[1] in ("overlap", "aborted", "mismatch")


def size_program(rank: Rank) -> str | None:
    quick = rank.make_quick()
    quick.all_reduce(torch.ones(4096 + 32 * rank.rank, device="cuda"))
    kind = failure_kind(quick)
    with pytest.raises(CommunicationError):
        quick.check()
    with pytest.raises(CommunicationError):
        quick.all_reduce(torch.ones(4096, device="cuda"))
    return kind


def test_another_size_on_one_rank() -> None:
    assert "mismatch" in run_ranks(size_program)


def missing_program(rank: Rank) -> float:
    quick = rank.make_quick(timeout_s=1.5)
    tensor = torch.ones(4096, device="cuda")
    quick.all_reduce(tensor)
    torch.cuda.synchronize()
    began = time.monotonic()
    if rank.rank == 0:
        quick.all_reduce(tensor)
        assert failure_kind(quick) == "timeout"
    took = time.monotonic() - began
    rank.gather(None)
    if rank.rank == 1:
        quick.all_reduce(tensor)
        assert failure_kind(quick) == "aborted"
    return took


def test_a_call_missing_on_one_rank_ends_at_the_limit() -> None:
    assert 1.4 < run_ranks(missing_program)[0] < 4


def dead_program(rank: Rank) -> str | None:
    quick = rank.make_quick(timeout_s=1.5)
    tensor = torch.ones(1 << 20, device="cuda")
    quick.all_reduce(tensor)
    torch.cuda.synchronize()
    if rank.rank == 1:
        return None  # and the process ends without a word
    return str([quick.all_reduce(tensor), failure_kind(quick)][1])


def test_a_dead_peer_ends_at_the_limit() -> None:
    assert run_ranks(dead_program)[0] == "timeout"


def abort_program(rank: Rank) -> str | None:
    quick = rank.make_quick(timeout_s=60)
    if rank.rank == 0:
        quick.all_reduce(torch.ones(4096, device="cuda"))
        return failure_kind(quick)
    time.sleep(0.5)  # the peer's kernel waits by then; if not, it is aborted as it begins
    quick.abort()
    with pytest.raises(CommunicationError, match="it was aborted before the call began"):
        quick.all_reduce(torch.ones(4096, device="cuda"))
    return "refused"


def test_the_host_of_a_peer_gives_up() -> None:
    assert run_ranks(abort_program, limit_s=30) == ["aborted", "refused"]


def closed_program(rank: Rank) -> bool:
    quick = rank.make_quick()
    quick.close()
    with pytest.raises(CommunicationError, match="closed"):
        quick.all_reduce(torch.ones(64, device="cuda"))
    return True


def test_use_after_close() -> None:
    assert run_ranks(closed_program) == [True, True]


def shared_program(rank: Rank) -> int:
    """A thousand calls without a barrier, of ranks that the GPU runs in turn."""
    quick = rank.make_quick(timeout_s=60, shape=RegionShape(24, 8192))
    outputs = []
    for number in range(1000):
        size = 1 + number * 37 % 20_000
        tensor = torch.full((size,), float(number % 3), dtype=torch.float16, device="cuda")
        outputs.append(quick.all_reduce(tensor, None, *WAYS[number % len(WAYS)]))
    torch.cuda.synchronize()
    quick.check()
    for number, output in enumerate(outputs):
        assert bool((output == float(number % 3) * rank.world_size).all()), number
    quick.close()
    return len(outputs)


@pytest.mark.parametrize(("world_size", "num_gpus"), [(2, 1), (4, 0), (8, 0)])
def test_a_thousand_calls_of_processes_that_share_gpus(world_size: int, num_gpus: int) -> None:
    assert run_ranks(shared_program, world_size, num_gpus, limit_s=240) == [1000] * world_size


def memory_program(rank: Rank) -> int:
    quick = rank.make_quick()
    quick.all_reduce(torch.ones(1 << 26, device="cuda", dtype=torch.bfloat16))
    quick.check()
    num_bytes = quick.num_bytes
    quick.close()
    return num_bytes


def test_memory_is_below_128_mib_for_any_message() -> None:
    assert all(0 < num_bytes < 128 << 20 for num_bytes in run_ranks(memory_program))
