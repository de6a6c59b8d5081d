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
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan, TokenLogprobs
from splitrank.serving.rank.prompt_logprobs import Piece, ScoredRows, scored_rows
from splitrank.serving.rank.request_table import RequestTable


@dataclass(frozen=True)
class PlannedBatch:
    """``sampled`` are the slots of ``batch.sample_rows``, row for row: decodes, then chunks, in the plan's order.
    ``copies`` holds the states that are copied inside a chunk, by snapshot number. ``scored`` are chunks whose prompts
    want log probabilities; ``Steps.forward`` fills ``prompt_logprobs`` on the sampling rank, by request."""

    batch: Any  # ``models.batch.Batch``, or on a GPU ``models.ops.gpu.batch.GpuBatch``
    host_slots: npt.NDArray[np.int64]  # batch.decode_slots
    sampled: list[int]
    copies: dict[int, StateCopy] = field(default_factory=dict)
    ends: tuple[tuple[int, int], ...] = ()  # of chunks: slot, and tokens that it has after the step
    scored: tuple[ScoredRows, ...] = ()
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)


_NONE = torch.empty(0, dtype=torch.int64)
_NO_PREFILLS = PrefillRows((), torch.zeros(1, dtype=torch.int32), _NONE.int(), _NONE, _NONE.view(0, 0))


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
    pieces = [
        *single_pieces(table, singles, len(decodes)),
        *(Piece(chunk.slot, chunk.row, chunk.start, chunk.length) for chunk in prefills.chunks),
    ]
    return PlannedBatch(batch, host_slots, sampled, copies_inside, after, scored_rows(table, pieces))


def _decode_batch(table: RequestTable, host_slots: npt.NDArray[np.int64]) -> Batch:
    """One token, the last one, of each slot, and nothing else.

    With numpy, whose calls on a few numbers take a third of torch's; the table's tensors are its arrays.
    """
    positions, count, page_size = table.host_lengths[host_slots], len(host_slots), table.page_size
    longest = int(positions.max()) + 1 if count else 0
    pages = table.host_page_table[host_slots, : pages_needed(longest, page_size)]
    kv_index = pages[_rows(count), positions // page_size] * page_size + positions % page_size
    slots = torch.from_numpy(host_slots)
    return Batch(
        token_ids=table.last_tokens.index_select(0, slots),
        positions=torch.from_numpy(positions),
        kv_index=torch.from_numpy(kv_index),
        num_decodes=count,
        decode_slots=slots,
        decode_pages=torch.from_numpy(pages),
        decode_lengths=torch.from_numpy(positions + 1),
        prefills=_NO_PREFILLS,
        sample_rows=torch.from_numpy(_rows(count)),
    )


@lru_cache(64)
def _rows(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count)


def is_single(table: RequestTable, chunk: ChunkPlan) -> bool:
    """Whether a chunk is computed as a decode row: one token, of a sequence that has a state."""
    return chunk.num_tokens == 1 and table.host_lengths[chunk.slot] > 0


def single_pieces(table: RequestTable, singles: list[ChunkPlan], first_row: int) -> list[Piece]:
    """Chunks that are computed as decode rows, from ``first_row`` on."""
    starts = (int(table.host_lengths[chunk.slot]) for chunk in singles)
    return [
        Piece(chunk.slot, first_row + row, start, 1)
        for row, (chunk, start) in enumerate(zip(singles, starts, strict=True))
    ]


def span_of(table: RequestTable, chunk: ChunkPlan) -> slice:
    """Which tokens of its prompt a chunk computes."""
    start = int(table.host_lengths[chunk.slot])
    return slice(start, start + chunk.num_tokens)


def copies_inside_of(table: RequestTable, chunk: ChunkPlan, saved: Collection[SnapshotPlan]) -> dict[int, StateCopy]:
    """The copies to be made inside a chunk, by snapshot number: those of this row at positions before the chunk's end,
    in their order."""
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
