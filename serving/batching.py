"""From a step plan and the request table to the model's batch: decode rows first, then chunks of prompts."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from splitrank.models.batch import Batch, Chunk, PrefillRows, StateCopy
from splitrank.serving.cache import pages_needed
from splitrank.serving.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.request_table import RequestTable


@dataclass(frozen=True)
class PlannedBatch:
    """``sampled`` are the slots of ``batch.sample_rows``, row for row: decodes, then chunks, in the plan's order.
    ``copies`` holds the states that are copied inside a chunk, by snapshot number."""

    batch: Batch
    sampled: list[int]
    copies: dict[int, StateCopy] = field(default_factory=dict)


def make_batch(
    table: RequestTable, decodes: list[int], chunks: list[ChunkPlan], saved: Collection[SnapshotPlan] = ()
) -> PlannedBatch:
    """Each row goes on where it stands in the table; a decode feeds its last token, a chunk the next of its prompt.

    A prompt's token alone, behind others, is computed as a decode row: it has a state.
    """
    singles = [chunk for chunk in chunks if _is_single(table, chunk)]
    longer = [chunk for chunk in chunks if not _is_single(table, chunk)]
    slots = decodes + [chunk.slot for chunk in singles]
    copies = [_copies_inside(table, chunk, saved) for chunk in longer]
    decode_slots = _ints(slots, table)
    lengths = table.lengths[decode_slots]
    pages = table.pages[:, : _width(table, slots, 1)].index_select(0, decode_slots)
    prefills = _prefill_rows(table, longer, copies, len(slots))
    spans = [torch.arange(chunk.start, chunk.start + chunk.length, device=lengths.device) for chunk in prefills.chunks]
    tokens = [table.rows[chunk.slot].prompt[_span(table, chunk)] for chunk in singles + longer]
    indices = [_kv_index(table, row[None], span) for row, span in zip(prefills.pages, spans, strict=True)]
    ends = {chunk.slot: chunk.row + chunk.length for chunk in prefills.chunks}
    ends |= {slot: row + 1 for row, slot in enumerate(slots)}
    sampled = decodes + [chunk.slot for chunk in chunks if chunk.sample]
    batch = Batch(
        token_ids=torch.cat([table.last_tokens[decode_slots[: len(decodes)]], *tokens]),
        positions=torch.cat([lengths, *spans]),
        kv_index=torch.cat([_kv_index(table, pages, lengths), *indices]),
        num_decodes=len(slots),
        decode_slots=decode_slots,
        decode_pages=pages,
        decode_lengths=lengths + 1,
        prefills=prefills,
        sample_rows=_ints([ends[slot] - 1 for slot in sampled], table),
    )
    return PlannedBatch(batch, sampled, {number: copy for inside in copies for number, copy in inside.items()})


def _is_single(table: RequestTable, chunk: ChunkPlan) -> bool:
    return chunk.num_tokens == 1 and table.host_lengths[chunk.slot] > 0


def _span(table: RequestTable, chunk: ChunkPlan) -> slice:
    start = int(table.host_lengths[chunk.slot])
    return slice(start, start + chunk.num_tokens)


def _copies_inside(table: RequestTable, chunk: ChunkPlan, saved: Collection[SnapshotPlan]) -> dict[int, StateCopy]:
    """By snapshot number, those of this row that lie before the chunk's last token; nearest first."""
    span = _span(table, chunk)
    inside = [one for one in saved if one.slot == chunk.slot and one.num_tokens < span.stop]
    inside.sort(key=lambda one: one.num_tokens)
    return {one.snapshot: StateCopy(one.num_tokens - span.start) for one in inside}


def _prefill_rows(
    table: RequestTable, plans: list[ChunkPlan], copies: list[dict[int, StateCopy]], first_row: int
) -> PrefillRows:
    """``plans`` stand behind ``first_row`` decode rows."""
    ends = list(accumulate((plan.num_tokens for plan in plans), initial=0))
    spans = [_span(table, plan) for plan in plans]
    chunks = tuple(
        Chunk(first_row + offset, plan.num_tokens, span.start, plan.slot, tuple(inside.values()))
        for plan, span, inside, offset in zip(plans, spans, copies, ends, strict=False)  # the last end begins nothing
    )
    slots, device = _ints([plan.slot for plan in plans], table), table.pages.device
    width = max((pages_needed(span.stop, table.page_size) for span in spans), default=0)
    return PrefillRows(
        chunks,
        torch.tensor(ends, dtype=torch.int32, device=device),
        torch.tensor([span.start for span in spans], dtype=torch.int32, device=device),
        slots,
        table.pages[:, :width].index_select(0, slots),
    )


def _width(table: RequestTable, slots: list[int], num_new: int) -> int:
    """Pages of the longest of ``slots`` with its new tokens."""
    return pages_needed(int(table.host_lengths[slots].max()) + num_new, table.page_size) if slots else 0


def _kv_index(table: RequestTable, pages: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """pages [T, P], or [1, P] of one row; positions [T] -> [T]."""
    size = table.page_size
    page = pages.expand(len(positions), -1).gather(1, (positions // size)[:, None])[:, 0]
    return page * size + positions % size


def _ints(values: list[int], table: RequestTable) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=table.pages.device)
