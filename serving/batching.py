"""From a step plan to the model's batch: tensors, decode rows first, and the order in which results go back."""

from dataclasses import dataclass
from itertools import accumulate

import torch

from splitrank.models.batch import Batch, Chunk, PrefillRows
from splitrank.serving.messages import SequencePlan


@dataclass(frozen=True)
class PlannedBatch:
    """``sampled`` lists the sequences of ``batch.sample_rows``, row for row, in the plan's order."""

    batch: Batch
    sampled: list[SequencePlan]


def is_decode(sequence: SequencePlan) -> bool:
    """One token of a sequence that has state: also a prompt's last token alone in its chunk."""
    return len(sequence.tokens) == 1 and sequence.start > 0


def make_batch(sequences: list[SequencePlan], page_size: int) -> PlannedBatch:
    """Rows of the step in the model's order; every tensor has storage of its own."""
    decodes = [s for s in sequences if is_decode(s)]
    chunks = [s for s in sequences if not is_decode(s)]
    ordered = decodes + chunks
    ends = list(accumulate(len(s.tokens) for s in ordered))
    last_row = {s.request: end - 1 for s, end in zip(ordered, ends, strict=True)}
    sampled = [s for s in sequences if s.sample]
    batch = Batch(
        token_ids=_ints([token for s in ordered for token in s.tokens]),
        positions=_ints([s.start + i for s in ordered for i in range(len(s.tokens))]),
        kv_index=_ints([index for s in ordered for index in _kv_indices(s, page_size)]),
        num_decodes=len(decodes),
        decode_slots=_ints([s.slot for s in decodes]),
        decode_pages=_page_tables(decodes, page_size),
        decode_lengths=_ints([s.start + 1 for s in decodes]),
        prefills=_prefill_rows(chunks, len(decodes), page_size),
        sample_rows=_ints([last_row[s.request] for s in sampled]),
    )
    return PlannedBatch(batch, sampled)


def _prefill_rows(sequences: list[SequencePlan], first_row: int, page_size: int) -> PrefillRows:
    """``sequences`` stand behind ``first_row`` decode rows."""
    ends = list(accumulate((len(s.tokens) for s in sequences), initial=0))
    chunks = (
        Chunk(first_row + offset, len(s.tokens), s.start, s.slot)
        for s, offset in zip(sequences, ends, strict=False)  # the last end begins nothing
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
