"""The all-reduce between launches that start early (csrc/README.md): in graphs, with the bits that it has without."""

from typing import Any

import pytest
import torch

from splitrank.comm.native import ALGORITHM_CODES
from splitrank.models.ops.gpu.norm import add_norm, sum_parts
from splitrank.models.ops.gpu.tiles import Tile
from tests.gpu.ranks import Rank, run_ranks

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

EARLY = Tile(num_warps=8, pdl=True)
HIDDEN, PARTS, LAYERS, BFLOAT16 = 2048, 9, 20, 1


def chain(native: Any, tensors: list[torch.Tensor], algorithm: str, starts_early: bool) -> None:
    """LAYERS times: sum of parts, all-reduce in place, add and norm. The next layer sums what this one normed."""
    parts, summed, residual, normed, weight = tensors
    residual.zero_()
    for _ in range(LAYERS):
        sum_parts(parts, summed, EARLY)
        address, stream = summed.data_ptr(), torch.cuda.current_stream().cuda_stream
        arguments = address, address, summed.numel(), BFLOAT16, 0, ALGORITHM_CODES[algorithm], 10_000_000_000, stream
        assert native.all_reduce(*arguments, starts_early=starts_early)
        add_norm(residual, summed[:, None], weight, residual, normed, 1e-6, EARLY)
        parts[:, 0].copy_(normed)


def chain_program(rank: Rank) -> int:
    quick = rank.make_quick()
    native: Any = quick._native
    compared = 0
    for rows in (1, 32, 256):
        for algorithm in ("tagged", "one-shot", "two-shot"):
            graphs, all_tensors = [], []
            for starts_early in (False, True):
                empty = torch.empty(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
                weight = torch.zeros(HIDDEN, device="cuda", dtype=torch.bfloat16)
                tensors = [empty.new_zeros(rows, PARTS, HIDDEN), *(torch.empty_like(empty) for _ in range(3)), weight]
                chain(native, tensors, algorithm, starts_early)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    chain(native, tensors, algorithm, starts_early)
                graphs.append(graph)
                all_tensors.append(tensors)
            for seed in range(50):
                part = rank.part(rows * PARTS * HIDDEN, seed).view(rows, PARTS, HIDDEN).cuda()
                for graph, tensors in zip(graphs, all_tensors, strict=True):
                    tensors[0].copy_(part)
                    graph.replay()
                quick.check()
                for late, early in zip(*all_tensors, strict=True):
                    assert torch.equal(late, early), (rows, algorithm, seed)
                compared += 1
    quick.close()
    return compared


@pytest.mark.gpu(count=2)
def test_an_early_start_changes_no_bit_of_a_chain_in_a_graph() -> None:
    assert run_ranks(chain_program, limit_s=280) == [450, 450]


def launch_program(rank: Rank) -> bool:
    quick = rank.make_quick()
    starts_early = quick._launch["starts_early"]
    quick.close()
    return starts_early


def test_ranks_that_share_a_gpu_do_not_start_early() -> None:
    """A rank's waiting kernels could take the room that its peer on the same GPU needs."""
    assert run_ranks(launch_program, num_gpus=1) == [False, False]


@pytest.mark.gpu(count=2)
def test_ranks_with_a_gpu_each_start_early() -> None:
    assert run_ranks(launch_program, num_gpus=2) == [True, True]
