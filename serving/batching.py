"""From a step plan to the model's batch: tensors, decode rows first, and the order in which results go back."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from splitrank.models.batch import Batch, Chunk, PrefillRows, StateCopy
from splitrank.serving.messages import SequencePlan, SnapshotPlan


@dataclass(frozen=True)
class PlannedBatch:
    """``sampled`` lists the sequences of ``batch.sample_rows``, row for row, in the plan's order. ``copies`` holds the
    states that are copied inside a chunk, by snapshot number."""

    batch: Batch
    sampled: list[SequencePlan]
    copies: dict[int, StateCopy] = field(default_factory=dict)


def is_decode(sequence: SequencePlan) -> bool:
    """One token of a sequence that has state: also a prompt's last token alone in its chunk."""
    return len(sequence.tokens) == 1 and sequence.start > 0


def make_batch(sequences: list[SequencePlan], page_size: int, saved: Collection[SnapshotPlan] = ()) -> PlannedBatch:
    """Rows of the step in the model's order; every tensor has storage of its own."""
    decodes = [s for s in sequences if is_decode(s)]
    chunks = [s for s in sequences if not is_decode(s)]
    ordered = decodes + chunks
    ends = list(accumulate(len(s.tokens) for s in ordered))
    last_row = {s.request: end - 1 for s, end in zip(ordered, ends, strict=True)}
    sampled = [s for s in sequences if s.sample]
    copies = [_copies_inside(s, saved) for s in chunks]
    batch = Batch(
        token_ids=_ints([token for s in ordered for token in s.tokens]),
        positions=_ints([s.start + i for s in ordered for i in range(len(s.tokens))]),
        kv_index=_ints([index for s in ordered for index in _kv_indices(s, page_size)]),
        num_decodes=len(decodes),
        decode_slots=_ints([s.slot for s in decodes]),
        decode_pages=_page_tables(decodes, page_size),
        decode_lengths=_ints([s.start + 1 for s in decodes]),
        prefills=_prefill_rows(chunks, copies, len(decodes), page_size),
        sample_rows=_ints([last_row[s.request] for s in sampled]),
    )
    return PlannedBatch(batch, sampled, {number: copy for inside in copies for number, copy in inside.items()})


def _copies_inside(sequence: SequencePlan, saved: Collection[SnapshotPlan]) -> dict[int, StateCopy]:
    """By snapshot number, those of this sequence that lie before the step's last token of it; nearest first."""
    end = sequence.start + len(sequence.tokens)
    inside = [one for one in saved if one.slot == sequence.slot and one.num_tokens < end]
    inside.sort(key=lambda one: one.num_tokens)
    return {one.snapshot: StateCopy(one.num_tokens - sequence.start) for one in inside}


def _prefill_rows(
    sequences: list[SequencePlan], copies: list[dict[int, StateCopy]], first_row: int, page_size: int
) -> PrefillRows:
    """``sequences`` stand behind ``first_row`` decode rows."""
    ends = list(accumulate((len(s.tokens) for s in sequences), initial=0))
    chunks = (
        Chunk(first_row + offset, len(s.tokens), s.start, s.slot, tuple(inside.values()))
        for s, inside, offset in zip(sequences, copies, ends, strict=False)  # the last end begins nothing
    )
    return PrefillRows(
        tuple(chunks),
        torch.tensor(ends, dtype=torch.int32),
        torch.tensor([s.start for s in sequences], dtype=torch.int32),
        _ints([s.slot for s in sequences]),
        _page_tables(sequences, page_size),
    )


def _used_pages(sequence: SequencePlan, page_size: int) -> list[int]:
    end = sequence.start + len(sequence.tokens)
    return sequence.pages[: -(-end // page_size)]


def _kv_indices(sequence: SequencePlan, page_size: int) -> list[int]:
    positions = range(sequence.start, sequence.start + len(sequence.tokens))
    return [sequence.pages[position // page_size] * page_size + position % page_size for position in positions]


def _page_tables(sequences: list[SequencePlan], page_size: int) -> torch.Tensor:
    tables = [_used_pages(s, page_size) for s in sequences]
    width = max(map(len, tables), default=0)
    rows = [table + [0] * (width - len(table)) for table in tables]
    return torch.tensor(rows, dtype=torch.int64).view(len(tables), width)


def _ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
