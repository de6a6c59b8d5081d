"""From a step plan and the request table to a GPU's batch, with one copy of numbers to the device."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import numpy.typing as npt
import torch

from splitrank.models.batch import StateCopy
from splitrank.models.ops.gpu.batch import GpuBatch, Round
from splitrank.models.ops.gpu.sequences import Sequences, place, to_device
from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.rank.batch_builder import PlannedBatch, copies_inside_of, is_single, single_pieces, span_of
from splitrank.serving.rank.prompt_logprobs import Piece, scored_rows
from splitrank.serving.rank.request_table import RequestTable


@dataclass(frozen=True)
class PlannedGpuBatch(PlannedBatch):
    """``sample_slots`` [S] int32 is ``sampled`` on the device, ``num_samples`` [1] its length."""

    sample_slots: torch.Tensor | None = None
    num_samples: torch.Tensor | None = None


@dataclass(frozen=True)
class _Segment:
    """A part of a chunk, up to where the state is copied, or up to its end. Number ``round`` of its chunk."""

    round: int
    slot: int
    start: int
    length: int
    copy: StateCopy | None


def make_gpu_batch(
    table: RequestTable,
    decodes: list[int],
    chunks: list[ChunkPlan],
    saved: Collection[SnapshotPlan] = (),
    takes_lone_tokens_as_decodes: bool = True,
) -> PlannedGpuBatch:
    """As ``batch_builder.make_batch``; prompt rows lie round by round (``models/ops/gpu/batch.py``)."""
    singles = [chunk for chunk in chunks if takes_lone_tokens_as_decodes and is_single(table, chunk)]
    longer = [chunk for chunk in chunks if chunk not in singles]
    host_slots = np.array(decodes + [chunk.slot for chunk in singles], dtype=np.int64)
    copies = {chunk.slot: copies_inside_of(table, chunk, saved) for chunk in longer}
    segments = sorted(
        (part for chunk in longer for part in _segments(table, chunk, list(copies[chunk.slot].values()))),
        key=lambda one: one.round,
    )
    firsts = [len(host_slots), *accumulate((one.length for one in segments), initial=len(host_slots))][1:]
    last_rows = {slot: row for row, slot in enumerate(host_slots.tolist())}
    last_rows |= {one.slot: first + one.length - 1 for one, first in zip(segments, firsts, strict=False)}
    sampled = decodes + [chunk.slot for chunk in chunks if chunk.sample]
    numbers = to_device(
        {
            "num_live": [firsts[-1]],
            "num_samples": [len(sampled)],
            "token_ids": _token_ids(table, len(decodes), singles, segments),
            "slots": np.concatenate([host_slots, *(np.full(one.length, one.slot) for one in segments)]),
            "positions": _positions(table, host_slots, segments),
            "sample_rows": [last_rows[slot] for slot in sampled],
            "sample_slots": sampled,
        },
        table.device,
    )
    rounds = tuple(_rounds(table, segments))
    batch = GpuBatch(
        token_ids=numbers["token_ids"],
        slots=numbers["slots"],
        positions=numbers["positions"],
        last_tokens=table.last_tokens,
        num_live=numbers["num_live"],
        num_decodes=len(host_slots),
        decode_pages=_decode_pages(table, host_slots, numbers["slots"]),
        rounds=rounds,
        segments=_all_segments(table, segments, rounds),
        sample_rows=None if sampled == host_slots.tolist() and not segments else numbers["sample_rows"],
    )
    ends = tuple((chunk.slot, span_of(table, chunk).stop) for chunk in longer)
    copies_inside = {number: copy for inside in copies.values() for number, copy in inside.items()}
    pieces = single_pieces(table, singles, len(decodes))
    pieces += [Piece(one.slot, first, one.start, one.length) for one, first in zip(segments, firsts, strict=False)]
    return PlannedGpuBatch(
        batch,
        host_slots,
        sampled,
        copies_inside,
        ends,
        scored_rows(table, pieces),
        sample_slots=numbers["sample_slots"],
        num_samples=numbers["num_samples"],
    )


def _segments(table: RequestTable, chunk: ChunkPlan, copies: list[StateCopy]) -> list[_Segment]:
    span = span_of(table, chunk)
    ends = [*(span.start + copy.offset for copy in copies), span.stop]
    starts, behind = [span.start, *ends[:-1]], [*copies, None]
    return [
        _Segment(number, chunk.slot, start, end - start, copy)
        for number, (start, end, copy) in enumerate(zip(starts, ends, behind, strict=True))
    ]


def _token_ids(
    table: RequestTable, num_decodes: int, singles: list[ChunkPlan], segments: list[_Segment]
) -> npt.NDArray[np.int64]:
    """-1 stands for the last sampled token of the row's slot."""
    spans = [(chunk.slot, span_of(table, chunk)) for chunk in singles]
    spans += [(one.slot, slice(one.start, one.start + one.length)) for one in segments]
    prompts = [table.rows[slot].prompt[span].numpy() for slot, span in spans]
    return np.concatenate([np.full(num_decodes, -1), *prompts])


def _positions(
    table: RequestTable, host_slots: npt.NDArray[np.int64], segments: list[_Segment]
) -> npt.NDArray[np.int64]:
    spans = [np.arange(one.start, one.start + one.length) for one in segments]
    return np.concatenate([table.host_lengths[host_slots], *spans])


def _decode_pages(table: RequestTable, host_slots: npt.NDArray[np.int64], slots: torch.Tensor) -> torch.Tensor:
    longest = int(table.host_lengths[host_slots].max()) + 1 if len(host_slots) else 0
    width = pages_needed(longest, table.page_size)
    return table.pages[:, :width].index_select(0, slots[: len(host_slots)])


def _rounds(table: RequestTable, segments: list[_Segment]) -> list[Round]:
    rounds, first = [], 0
    for _, group in groupby(segments, key=lambda one: one.round):
        members = list(group)
        stop = first + sum(one.length for one in members)
        copies = tuple((one.slot, one.copy) for one in members if one.copy is not None)
        rounds.append(Round(slice(first, stop), _sequences(table, members), copies))
        first = stop
    return rounds


def _all_segments(table: RequestTable, segments: list[_Segment], rounds: tuple[Round, ...]) -> Sequences | None:
    if not segments:
        return None
    return rounds[0].sequences if len(rounds) == 1 else _sequences(table, segments)


def _sequences(table: RequestTable, segments: list[_Segment]) -> Sequences:
    counts = [pages_needed(one.start + one.length, table.page_size) for one in segments]
    return place(
        [one.length for one in segments],
        [one.start for one in segments],
        [one.slot for one in segments],
        [table.host_pages[one.slot][:count] for one, count in zip(segments, counts, strict=True)],
        table.device,
    )
