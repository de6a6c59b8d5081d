"""All ranks of a communicator on one GPU: regions, tensors, and lists of calls for ``all_ranks.play``."""

from dataclasses import dataclass
from typing import Any

import torch

from splitrank.comm.native import ALGORITHM_CODES, CODEC_CODES, Failure
from splitrank.comm.quick_reduce import DTYPE_CODES

TIMEOUT_NS = 2_000_000_000


@dataclass(frozen=True)
class Call:
    """One all-reduce: the parts of all ranks, their outputs, and how."""

    parts: list[torch.Tensor]
    outputs: list[torch.Tensor]
    algorithm: str
    codec: str


class OneGpu:
    """``world_size`` communicators in this process, with addresses as they are."""

    def __init__(self, module: Any, world_size: int, num_slots: int = 48, segment_bytes: int = 8192) -> None:
        self._module, self.world_size = module, world_size
        self.ranks = [module.Communicator(rank, world_size, num_slots, segment_bytes) for rank in range(world_size)]
        handles = [rank.handle() for rank in self.ranks]
        for rank in self.ranks:
            rank.open(handles, num_slots)

    def play(
        self, calls: list[Call], absent: dict[int, int] | None = None, blocks: int = 0, longest_stall_ns: int = 0
    ) -> list[Failure | None]:
        """Runs the calls in one kernel. ``absent``: calls that a rank leaves out, as {call: rank}."""
        rows = []
        for number, call in enumerate(calls):
            codes = (CODEC_CODES[call.codec], ALGORITHM_CODES[call.algorithm])
            tensors = zip(call.parts, call.outputs, strict=True)
            rows.append(
                [
                    (part.data_ptr(), output.data_ptr(), part.numel(), *codes, (absent or {}).get(number) != rank)
                    for rank, (part, output) in enumerate(tensors)
                ]
            )
        dtype = DTYPE_CODES[calls[0].parts[0].dtype]
        stream = torch.cuda.current_stream().cuda_stream
        blocks = blocks or min(16, 96 // self.world_size)
        self._module.play(self.ranks, rows, dtype, TIMEOUT_NS, stream, blocks, 256, longest_stall_ns)
        return [rank.failure() for rank in self.ranks]

    def close(self) -> None:
        for rank in self.ranks:
            rank.leave()
        for rank in self.ranks:
            rank.close()


def make_call(parts: list[torch.Tensor], algorithm: str = "two-shot", codec: str = "none") -> Call:
    """On the GPU; outputs full of NaN, so that what is not written shows."""
    on_gpu = [part.cuda() for part in parts]
    return Call(on_gpu, [torch.full_like(part, float("nan")) for part in on_gpu], algorithm, codec)
