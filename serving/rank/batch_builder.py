"""From a step plan and the request table to the model's batch: decode rows first, then chunks of prompts."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from splitrank.models.batch import Batch, Chunk, PrefillRows, StateCopy
from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.rank.request_table import RequestTable


@dataclass(frozen=True)
class PlannedBatch:
    """``sampled`` are the slots of ``batch.sample_rows``, row for row: decodes, then chunks, in the plan's order.
    ``copies`` holds the states that are copied inside a chunk, by snapshot number."""

    batch: Any  # ``models.batch.Batch``, or on a GPU ``models.ops.gpu.batch.GpuBatch``
    host_slots: npt.NDArray[np.int64]  # batch.decode_slots
    sampled: list[int]
    copies: dict[int, StateCopy] = field(default_factory=dict)
    ends: tuple[tuple[int, int], ...] = ()  # of chunks: slot, and tokens that it has after the step


def make_batch(
    table: RequestTable, decodes: list[int], chunks: list[ChunkPlan], saved: Collection[SnapshotPlan] = ()
) -> PlannedBatch:
    """Each row goes on where it stands in the table; a decode feeds its last token, a chunk the next of its prompt.

    A prompt's token alone, behind others, is computed as a decode row: it has a state.
    """
    singles = [chunk for chunk in chunks if is_single(table, chunk)]
    host_slots = np.array(decodes + [chunk.slot for chunk in singles], dtype=np.int64)
    batch = _decode_batch(table, host_slots)
    if not chunks:
        return PlannedBatch(batch, host_slots, decodes)
    longer = [chunk for chunk in chunks if not is_single(table, chunk)]
    copies = [copies_inside_of(table, chunk, saved) for chunk in longer]
    prefills = _prefill_rows(table, longer, copies, batch.num_decodes)
    spans = [torch.arange(chunk.start, chunk.start + chunk.length, device=table.device) for chunk in prefills.chunks]
    tokens = [table.rows[chunk.slot].prompt[span_of(table, chunk)] for chunk in singles + longer]
    indices = [_kv_index(table, row[None], span) for row, span in zip(prefills.pages, spans, strict=True)]
    ends = {chunk.slot: chunk.row + chunk.length for chunk in prefills.chunks}
    ends |= {slot: row + 1 for row, slot in enumerate(host_slots.tolist())}
    sampled = decodes + [chunk.slot for chunk in chunks if chunk.sample]
    batch = replace(
        batch,
        token_ids=torch.cat([batch.token_ids[: len(decodes)], *tokens]),
        positions=torch.cat([batch.positions, *spans]),
        kv_index=torch.cat([batch.kv_index, *indices]),
        prefills=prefills,
        sample_rows=_ints([ends[slot] - 1 for slot in sampled], table),
    )
    copies_inside = {number: copy for inside in copies for number, copy in inside.items()}
    after = tuple((chunk.slot, chunk.start + chunk.length) for chunk in prefills.chunks)
    return PlannedBatch(batch, host_slots, sampled, copies_inside, after)


def _decode_batch(table: RequestTable, host_slots: npt.NDArray[np.int64]) -> Batch:
    """One token, the last one, of each slot, and nothing else."""
    slots = torch.from_numpy(host_slots).to(table.device)
    positions = table.lengths.index_select(0, slots)
    longest = int(table.host_lengths[host_slots].max()) + 1 if len(host_slots) else 0
    pages = table.pages[:, : pages_needed(longest, table.page_size)].index_select(0, slots)
    return Batch(
        token_ids=table.last_tokens.index_select(0, slots),
        positions=positions,
        kv_index=_kv_index(table, pages, positions),
        num_decodes=len(host_slots),
        decode_slots=slots,
        decode_pages=pages,
        decode_lengths=positions + 1,
        prefills=_no_prefills(table.device),
        sample_rows=torch.arange(len(host_slots), device=table.device),
    )


@lru_cache(1)
def _no_prefills(device: torch.device) -> PrefillRows:
    empty = torch.empty(0, dtype=torch.int64, device=device)
    return PrefillRows((), torch.zeros(1, dtype=torch.int32, device=device), empty.int(), empty, empty.view(0, 0))


def is_single(table: RequestTable, chunk: ChunkPlan) -> bool:
    """Whether a chunk is computed as a decode row: one token, of a sequence that has a state."""
    return chunk.num_tokens == 1 and table.host_lengths[chunk.slot] > 0


def span_of(table: RequestTable, chunk: ChunkPlan) -> slice:
    """Which tokens of its prompt a chunk computes."""
    start = int(table.host_lengths[chunk.slot])
    return slice(start, start + chunk.num_tokens)


def copies_inside_of(table: RequestTable, chunk: ChunkPlan, saved: Collection[SnapshotPlan]) -> dict[int, StateCopy]:
    """By snapshot number, those of this row that lie before the chunk's last token; nearest first."""
    span = span_of(table, chunk)
    inside = [one for one in saved if one.slot == chunk.slot and one.num_tokens < span.stop]
    inside.sort(key=lambda one: one.num_tokens)
    return {one.snapshot: StateCopy(one.num_tokens - span.start) for one in inside}


def _prefill_rows(
    table: RequestTable, plans: list[ChunkPlan], copies: list[dict[int, StateCopy]], first_row: int
) -> PrefillRows:
    """``plans`` stand behind ``first_row`` decode rows."""
    ends = list(accumulate((plan.num_tokens for plan in plans), initial=0))
    spans = [span_of(table, plan) for plan in plans]
    chunks = tuple(
        Chunk(first_row + offset, plan.num_tokens, span.start, plan.slot, tuple(inside.values()))
        for plan, span, inside, offset in zip(plans, spans, copies, ends, strict=False)  # the last end begins nothing
    )
    slots, device = _ints([plan.slot for plan in plans], table), table.device
    width = max((pages_needed(span.stop, table.page_size) for span in spans), default=0)
    return PrefillRows(
        chunks,
        torch.tensor(ends, dtype=torch.int32, device=device),
        torch.tensor([span.start for span in spans], dtype=torch.int32, device=device),
        slots,
        table.pages[:, :width].index_select(0, slots),
    )


def _kv_index(table: RequestTable, pages: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """pages [T, P], or [1, P] of one row; positions [T] -> [T]."""
    page = pages.expand(len(positions), -1).gather(1, (positions // table.page_size)[:, None])
    return page[:, 0] * table.page_size + positions % table.page_size


def _ints(values: list[int], table: RequestTable) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=table.device)
