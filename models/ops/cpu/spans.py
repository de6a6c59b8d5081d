"""The rows of a step, sequence by sequence, as the compiled operations take them."""

from collections.abc import Iterator

import torch

from splitrank.models.batch import Batch, Chunk
from splitrank.models.cache import RecurrentSlots

Span = tuple[int, int, int, int, int]  # first row, rows, tokens before them, slot, address of the page table


def with_slots_and_pages(batch: Batch) -> list[Span]:
    """Decode rows, then chunks. A decode row has a token before it, so that its state goes on."""
    decodes = zip(batch.decode_lengths.tolist(), batch.decode_slots.tolist(), _rows(batch.decode_pages), strict=True)
    spans = [(row, 1, length - 1, slot, table) for row, (length, slot, table) in enumerate(decodes)]
    chunks = zip(batch.prefills.chunks, _rows(batch.prefills.pages), strict=True)
    return spans + [(one.row, one.length, one.start, one.slot, table) for one, table in chunks]


def between_copies(batch: Batch, slots: RecurrentSlots) -> Iterator[list[Span]]:
    """The rows with slots, in rounds. A chunk is cut where its state is to be copied; after each round, the states of
    the chunks cut there are copied."""
    spans = [(row, 1, 1, slot, 0) for row, slot in enumerate(batch.decode_slots.tolist())]
    cuts = [(chunk, [0, *(copy.offset for copy in chunk.copies), chunk.length]) for chunk in batch.prefills.chunks]
    for number in range(max((len(cut) - 1 for _, cut in cuts), default=1)):
        parts = [(chunk, cut[number], cut[number + 1]) for chunk, cut in cuts if number + 1 < len(cut)]
        spans += [(one.row + begin, end - begin, one.start + begin, one.slot, 0) for one, begin, end in parts]
        yield spans
        for chunk, _, _ in parts:
            _copy(chunk, number, slots)
        spans = []


def _copy(chunk: Chunk, number: int, slots: RecurrentSlots) -> None:
    if number < len(chunk.copies):
        chunk.copies[number].tensors.extend(slots.copy_of(chunk.slot))


def _rows(table: torch.Tensor) -> list[int]:
    """The address of each row of a page table [N, P]."""
    assert table.is_contiguous()
    return [table.data_ptr() + row * table.stride(0) * table.element_size() for row in range(len(table))]
