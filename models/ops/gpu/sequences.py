"""Where the runs of prompt tokens of one prefill step lie: what every prefill kernel over several sequences is told.

Legend: N sequences, T rows, P pages of a table. A block is 64 rows of one sequence, a tile ``TILE`` rows; both are cut
from the sequence's own first row, so that a sequence's arithmetic does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from splitrank.models.rounding import ceil_div

BLOCK = 64
TILE = 128
Numbers = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sequences:
    """All tensors are int32. Made by ``place``, once a step."""

    num_rows: int
    cu_seqlens: torch.Tensor  # [N + 1], first row of each sequence, and T
    starts: torch.Tensor  # [N], tokens before the run: a multiple of 64; 0 means that the state is new
    slots: torch.Tensor  # [N], recurrent-state slots
    pages: torch.Tensor  # [N, P], enough for start + length tokens
    first_blocks: torch.Tensor  # [N], the first block of each sequence
    blocks: torch.Tensor  # [B, 2], each block's sequence and first row
    tiles: torch.Tensor  # [M, 2], each tile's sequence and first row, the longest context first

    @property
    def num_sequences(self) -> int:
        return self.slots.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.blocks.shape[0]


def place(
    lengths: Sequence[int],
    starts: Sequence[int],
    slots: Sequence[int],
    pages: Sequence[Sequence[int]],
    device: torch.device | str,
) -> Sequences:
    """Lays ``lengths`` [N] tokens of N sequences one after the other, with one copy to the device.

    ``starts``: tokens before each run. ``slots``: its recurrent slot. ``pages``: its page table, of any length that
    holds start + length tokens. Raises ValueError for an empty run and for a start inside a block: a block's sums would
    then differ from those of the whole prompt.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"every sequence needs at least one row, not {list(lengths)}")
    if any(start % BLOCK for start in starts):
        raise ValueError(f"a prefill chunk starts at a multiple of {BLOCK} of its prompt, not at {list(starts)}")
    firsts = [0, *accumulate(lengths)]
    blocks = [(n, row) for n in range(len(lengths)) for row in range(firsts[n], firsts[n + 1], BLOCK)]
    tiles = [(n, row) for n in range(len(lengths)) for row in range(firsts[n], firsts[n + 1], TILE)]
    tiles.sort(key=lambda tile: firsts[tile[0]] - starts[tile[0]] - tile[1])
    counts = [ceil_div(length, BLOCK) for length in lengths]
    width = max(len(table) for table in pages)
    parts = {
        "cu_seqlens": (firsts, (len(firsts),)),
        "starts": (list(starts), (len(starts),)),
        "slots": (list(slots), (len(slots),)),
        "pages": ([page for table in pages for page in (*table, *[0] * (width - len(table)))], (len(pages), width)),
        "first_blocks": ([0, *accumulate(counts[:-1])], (len(counts),)),
        "blocks": ([number for block in blocks for number in block], (len(blocks), 2)),
        "tiles": ([number for tile in tiles for number in tile], (len(tiles), 2)),
    }
    flat = to_device({name: numbers for name, (numbers, _) in parts.items()}, device)
    return Sequences(num_rows=firsts[-1], **{name: flat[name].view(shape) for name, (_, shape) in parts.items()})


def to_device(parts: Mapping[str, Sequence[int] | npt.NDArray[np.int64]], device: torch.device | str) -> Numbers:
    """Numbers by name -> int32 tensors [n], parts of one that is copied once, without waiting for the device.

    Each begins at 16 bytes: the compiler makes another kernel for an address that does not.
    """
    begins = [0, *accumulate(4 * ceil_div(len(part), 4) for part in parts.values())]
    on_gpu = torch.device(device).type == "cuda"
    flat = torch.zeros(begins[-1], dtype=torch.int32, pin_memory=on_gpu)
    view = flat.numpy()
    for begin, part in zip(begins, parts.values(), strict=False):  # the last begins nothing
        view[begin : begin + len(part)] = part
    flat = flat.to(device, non_blocking=True)
    return {name: flat[begin : begin + len(part)] for begin, (name, part) in zip(begins, parts.items(), strict=False)}
