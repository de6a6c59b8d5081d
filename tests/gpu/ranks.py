"""Ranks as processes, each on a GPU of its own or several on one: started together, ended within a limit."""

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from splitrank.comm.quick_reduce import QuickAllReduce, RegionShape


@dataclass(frozen=True)
class Rank:
    """What a rank's program gets."""

    rank: int
    world_size: int
    device: torch.device

    def make_quick(self, timeout_s: float = 10.0, shape: RegionShape | None = None) -> QuickAllReduce:
        return QuickAllReduce(dist.group.WORLD, self.rank, self.world_size, timeout_s, self.device, shape)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def register(self, quick: QuickAllReduce) -> None:
        """After a capture: all ranks' inputs become known to all."""
        native: Any = quick._native
        native.register_inputs(self.gather(native.captured_inputs()))

    def part(self, count: int, seed: int, dtype: torch.dtype = torch.bfloat16, rank: int | None = None) -> torch.Tensor:
        """A tensor that depends on the rank; any rank can make any."""
        generator = torch.Generator().manual_seed(1000 * seed + (self.rank if rank is None else rank))
        return torch.randn(count, generator=generator).to(dtype)

    def parts(self, count: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
        return [self.part(count, seed, dtype, rank) for rank in range(self.world_size)]


Program = Callable[[Rank], Any]


def run_ranks(program: Program, world_size: int = 2, num_gpus: int = 0, limit_s: float = 90.0) -> list[Any]:
    """What ``program`` returned on each rank. An exception in any rank is raised. ``num_gpus`` 0: all there are."""
    num_gpus = num_gpus or torch.cuda.device_count()
    context = mp.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, num_gpus, f"{folder}/rendezvous", program, results)
        processes = [context.Process(target=_run, args=(rank, *arguments)) for rank in range(world_size)]
        for process in processes:
            process.start()
        try:
            found = [results.get(timeout=limit_s) for _ in processes]
        finally:
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
    errors = [error for _, _, error in found if error]
    assert not errors, "\n".join(errors)
    return [value for _, value, _ in sorted(found, key=lambda one: one[0])]


def _run(rank: int, world_size: int, num_gpus: int, rendezvous: str, program: Program, results: Any) -> None:
    try:
        device = torch.device("cuda", rank % num_gpus)
        torch.cuda.set_device(device)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
        results.put((rank, program(Rank(rank, world_size, device)), None))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, f"rank {rank}: {traceback.format_exc()}"))
