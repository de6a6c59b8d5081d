"""From request table and step plan to batch: rows, positions, page tables, where keys go, and who is sampled."""

import torch

from splitrank.models.batch import Chunk
from splitrank.serving.protocol.messages import ChunkPlan, NewPages, SnapshotPlan
from splitrank.serving.rank.batch_builder import PlannedBatch, make_batch
from splitrank.serving.rank.request_table import RequestTable
from tests.support.stage_runner import admitted, make_table

PAGE = 4


def table_of(*rows: tuple[int, list[int], int, list[int]]) -> RequestTable:
    """Rows (slot, prompt, tokens computed, pages); the last sampled token of a slot is 100 more than the slot."""
    table = make_table(num_slots=6, num_pages=5, page_size=PAGE)
    for slot, prompt, length, pages in rows:
        table.admit(admitted(slot + 50, slot, prompt, start=length), None)
        table.add_pages(NewPages(slot, pages))
    table.last_tokens[:] = torch.arange(6) + 100
    return table


def test_decode_rows_stand_first_then_single_tokens_then_chunks() -> None:
    table = table_of(
        (3, list(range(20, 25)), 2, [5, 6]),
        (1, [1], 9, [7, 8, 9]),
        (2, [30, 31], 0, [4]),
        (0, [40, 41, 42, 43, 44], 4, [1, 2, 3]),
        (5, [1], 5, [10, 11]),
    )
    planned = make_batch(
        table, [1, 5], [ChunkPlan(3, 3, sample=False), ChunkPlan(2, 2, sample=True), ChunkPlan(0, 1, sample=True)]
    )
    batch = planned.batch
    assert batch.token_ids.tolist() == [101, 105, 44, 22, 23, 24, 30, 31]
    assert batch.positions.tolist() == [9, 5, 4, 2, 3, 4, 0, 1]
    assert batch.kv_index.tolist() == [
        9 * 4 + 1, 11 * 4 + 1, 2 * 4, 5 * 4 + 2, 5 * 4 + 3, 6 * 4, 4 * 4, 4 * 4 + 1
    ]  # fmt: skip
    assert batch.num_tokens == 8
    assert batch.num_decodes == 3
    assert batch.decode_slots.tolist() == [1, 5, 0]
    assert batch.decode_lengths.tolist() == [10, 6, 5]
    assert batch.decode_pages.tolist() == [[7, 8, 9], [10, 11, 0], [1, 2, 3]]
    assert batch.prefills.chunks == (Chunk(3, 3, 2, 3), Chunk(6, 2, 0, 2))
    assert batch.prefills.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.prefills.starts.tolist() == [2, 0]
    assert batch.prefills.slots.tolist() == [3, 2]
    assert batch.prefills.pages.tolist() == [[5, 6], [4, 0]]
    assert planned.sampled == [1, 5, 2, 0]
    assert batch.sample_rows.tolist() == [0, 1, 7, 2]


def test_pages_beyond_the_context_are_left_out() -> None:
    table = table_of((0, [1], 3, [9, 8, 7]), (1, [1] * 4, 0, [6, 5, 4]))
    batch = make_batch(table, [0], [ChunkPlan(1, 4, sample=True)]).batch
    assert batch.decode_pages.tolist() == [[9]]
    assert batch.prefills.pages.tolist() == [[6]]


def test_a_prompt_of_one_token_is_a_prefill_and_its_last_token_alone_a_decode() -> None:
    def num_decodes(length: int, num_tokens: int) -> int:
        table = table_of((0, [1] * 16, length, [0, 1, 2, 3]))
        return make_batch(table, [], [ChunkPlan(0, num_tokens, sample=True)]).batch.num_decodes

    assert [num_decodes(0, 1), num_decodes(14, 1), num_decodes(14, 2)] == [0, 1, 0]


def test_states_are_copied_inside_a_chunk_and_not_at_its_end() -> None:
    table = table_of((4, [1] * 16, 4, [0, 1, 2, 3]))
    saved = [SnapshotPlan(7, 12, 4), SnapshotPlan(8, 16, 4), SnapshotPlan(9, 8, 4), SnapshotPlan(10, 8, 3)]
    planned = make_batch(table, [], [ChunkPlan(4, 12, sample=True)], saved)
    assert {number: copy.offset for number, copy in planned.copies.items()} == {9: 4, 7: 8}
    assert [copy.offset for copy in planned.batch.prefills.chunks[0].copies] == [4, 8]


def empty_batch() -> PlannedBatch:
    return make_batch(table_of(), [], [])


def test_nothing_planned_is_an_empty_batch() -> None:
    planned = empty_batch()
    batch = planned.batch
    assert batch.num_tokens == batch.num_decodes == 0
    assert batch.prefills.chunks == ()
    assert batch.prefills.cu_seqlens.tolist() == [0]
    assert batch.prefills.pages.shape == (0, 0)
    assert planned.sampled == []
    assert batch.decode_pages.shape == (0, 0)
    assert batch.sample_rows.shape == (0,)


def test_no_sampled_row_in_the_middle_of_a_prompt() -> None:
    table = table_of((0, [1, 2, 3], 0, [0]))
    assert make_batch(table, [], [ChunkPlan(0, 2, sample=False)]).batch.sample_rows.tolist() == []


def test_rows_come_go_and_move() -> None:
    table = table_of((1, [5, 6, 7], 3, [2, 3]))
    planned = make_batch(table, [1], [])
    table.advance(planned.host_slots, planned.ends)
    moved = table.take(1)
    assert (moved.length, int(moved.last_token), moved.row.request, table.slot_of(51)) == (4, 101, 51, None)
    assert table.pages[1].tolist() == [0] * 5
    table.put(4, moved)
    table.add_pages(NewPages(4, [1]))
    table.add_pages(NewPages(4, [0]))
    assert (table.slot_of(51), table.pages_of(4, 5).tolist(), int(table.last_tokens[4])) == (4, [1, 0], 101)
    assert int(table.lengths[4]) == table.host_lengths[4] == 4
