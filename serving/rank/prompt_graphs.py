"""Steps of one short prompt, or of its last tokens, as CUDA graphs: to launch their kernels one by one takes the host
twice as long as they take the device, and a user waits for it.

A graph has a fixed number of rows. The prompt's come first; the others are a second sequence of zeros in the table's
scratch slot and page, behind ``num_live``, so that no expert is read for them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from splitrank.models.hidden_states import HiddenStates
from splitrank.models.ops.gpu.batch import GpuBatch, Round
from splitrank.models.ops.gpu.sequences import BLOCK, TILE, Sequences
from splitrank.models.rounding import ceil_div, pages_needed
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.rank.batch_builder import copies_inside_of, is_single, span_of
from splitrank.serving.rank.decode_graphs import Compute, StepOutput, capture, put_states, staging
from splitrank.serving.rank.request_table import RequestTable

SIZES = (64, 128, 192, 256)


@dataclass(frozen=True)
class PromptRows:
    """A batch that a graph computes: the prompt in ``slot`` from token ``start`` on; the last one is sampled."""

    slot: int
    start: int
    num_tokens: int


class PromptStep:
    """A step of ``size`` rows, computed from tensors that stay where they are: parts of ``numbers``."""

    def __init__(self, size: int, table: RequestTable, inputs: HiddenStates | None) -> None:
        self.size, self._table, self.inputs = size, table, inputs
        shapes = _shapes(size, table.pages.shape[1])
        begins = [0, *accumulate(4 * ceil_div(prod(shape), 4) for shape in shapes.values())]
        self._places = {name: (begin, shape) for begin, (name, shape) in zip(begins, shapes.items(), strict=False)}
        self.numbers = torch.zeros(begins[-1], dtype=torch.int32, device=table.device)
        self._parts = self._split(self.numbers)

    def _split(self, numbers: Any) -> dict[str, Any]:
        """By name, of a tensor or an array."""
        return {
            name: numbers[begin : begin + prod(shape)].reshape(shape) for name, (begin, shape) in self._places.items()
        }

    def write(self, numbers: npt.NDArray[np.int32], rows: PromptRows, prompt: npt.NDArray[np.int64]) -> None:
        """What ``numbers`` of the device shall be for ``rows``, whose tokens are ``prompt``."""
        part, table, count, size = self._split(numbers), self._table, rows.num_tokens, self.size
        numbers[:] = 0
        part["num_live"][0], part["num_samples"][0], part["sample_rows"][0] = count, 1, count - 1
        part["token_ids"][:count] = prompt
        part["row_slots"][:count], part["row_slots"][count:] = rows.slot, table.scratch_slot
        part["sample_slots"][0] = rows.slot
        part["positions"][:count] = np.arange(rows.start, rows.start + count)
        part["positions"][count:] = np.arange(size - count)
        part["cu_seqlens"][:] = 0, count, size
        part["starts"][0] = rows.start
        part["slots"][:] = rows.slot, table.scratch_slot
        num_pages = pages_needed(rows.start + count, table.page_size)
        part["pages"][0, :num_pages] = table.host_pages[rows.slot][:num_pages]
        part["pages"][1] = table.scratch_page
        part["first_blocks"][1] = ceil_div(count, BLOCK)
        _cut(part["blocks"], BLOCK, count, size)
        _cut(part["tiles"], TILE, count, size)

    def run(self, compute: Compute) -> StepOutput:
        part = self._parts
        sequences = Sequences(
            self.size,
            *(part[name] for name in ("cu_seqlens", "starts", "slots", "pages", "first_blocks", "blocks", "tiles")),
        )
        batch = GpuBatch(
            token_ids=part["token_ids"],
            slots=part["row_slots"],
            positions=part["positions"],
            last_tokens=self._table.last_tokens,
            num_live=part["num_live"],
            num_decodes=0,
            decode_pages=self._table.pages[:0],
            rounds=(Round(slice(0, self.size), sequences),),
            segments=sequences,
            sample_rows=part["sample_rows"],
        )
        return compute(batch, self.inputs, part["sample_slots"], part["num_samples"], False)


def _shapes(size: int, width: int) -> dict[str, tuple[int, ...]]:
    """Of the parts of ``numbers``. Two sequences have at most one block, and one tile, more than one of all rows."""
    rows = dict.fromkeys(("token_ids", "row_slots", "positions"), (size,))
    ones = dict.fromkeys(("num_live", "num_samples", "sample_rows", "sample_slots"), (1,))
    twos = dict.fromkeys(("starts", "slots", "first_blocks"), (2,))
    cut = {"blocks": (size // BLOCK + 1, 2), "tiles": (ceil_div(size, TILE) + 1, 2)}
    return {**rows, **ones, **twos, "cu_seqlens": (3,), "pages": (2, width), **cut}


def _cut(pieces: npt.NDArray[np.int32], length: int, count: int, size: int) -> None:
    """[N, 2]: sequence and first row of the pieces of both sequences. One too many is an empty one behind the last."""
    places = [(0, row) for row in range(0, count, length)] + [(1, row) for row in range(count, size, length)]
    pieces[: len(places)] = places
    pieces[len(places) :] = 1, size


class PromptGraphs:
    """One graph a size of ``sizes``, captured when this is made. ``pool``: memory that other graphs may share."""

    def __init__(
        self, table: RequestTable, sizes: Sequence[int], compute: Compute, inputs: HiddenStates | None, pool: Any
    ) -> None:
        self._table = table
        self._steps = {size: PromptStep(size, table, inputs and inputs.first_rows(size)) for size in sizes}
        longest = max(step.numbers.shape[0] for step in self._steps.values())
        self._staged = staging(longest, table.device)
        self._graphs = {size: self._capture(step, compute, pool) for size, step in self._steps.items()}

    @staticmethod
    def _capture(step: PromptStep, compute: Compute, pool: Any) -> tuple[torch.cuda.CUDAGraph, StepOutput]:
        """Of two sequences without rows."""
        return capture(lambda: step.run(compute), pool)

    def rows_of(self, chunks: Sequence[ChunkPlan], saved: Collection[SnapshotPlan]) -> PromptRows | None:
        """None if a step of these chunks is none of a graph."""
        return rows_of(self._table, max(self._steps), chunks, saved)

    def launch(self, rows: PromptRows, states: HiddenStates | None) -> StepOutput:
        count = rows.num_tokens
        size = next(size for size in self._steps if size >= count)
        step, (graph, output) = self._steps[size], self._graphs[size]
        staged = next(self._staged)[: step.numbers.shape[0]]
        prompt = self._table.rows[rows.slot].prompt[rows.start : rows.start + count]
        step.write(staged.numpy(), rows, prompt.numpy())
        step.numbers.copy_(staged, non_blocking=True)
        put_states(step.inputs, states, count)
        graph.replay()
        return output


def graph_sizes(table: RequestTable, most: int) -> tuple[int, ...]:
    """Of ``SIZES`` those of at most ``most`` rows, whose padding finds its pages in a row of the table."""
    width = table.pages.shape[1]
    return tuple(size for size in SIZES if size <= most and pages_needed(size, table.page_size) <= width)


def rows_of(
    table: RequestTable, most: int, chunks: Sequence[ChunkPlan], saved: Collection[SnapshotPlan]
) -> PromptRows | None:
    """The end of one prompt, of at most ``most`` tokens, with nothing to report or to copy on the way; else None."""
    if len(chunks) != 1:
        return None
    (chunk,) = chunks
    if not chunk.sample or chunk.num_tokens > most or is_single(table, chunk):
        return None
    if table.rows[chunk.slot].prompt_logprobs is not None or copies_inside_of(table, chunk, saved):
        return None
    return PromptRows(chunk.slot, span_of(table, chunk).start, chunk.num_tokens)
