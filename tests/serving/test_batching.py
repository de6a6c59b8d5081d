"""From step plan to batch: rows, positions, page tables, where keys go, and who is sampled."""

from splitrank.models.batch import Chunk
from splitrank.serving.batching import is_decode, make_batch
from splitrank.serving.messages import SequencePlan

PAGE = 4


def plan(
    request: int, start: int, tokens: list[int], pages: list[int], sample: bool = True, slot: int = 0
) -> SequencePlan:
    return SequencePlan(request, slot, start, tokens, pages, sample)


def test_decode_rows_stand_first_and_all_else_follows_the_plan() -> None:
    planned = make_batch(
        [
            plan(0, 2, [10, 11, 12], [5, 6], sample=False, slot=3),
            plan(1, 9, [20], [7, 8, 9], slot=1),
            plan(2, 0, [30, 31], [4], slot=2),
            plan(3, 4, [40], [1, 2, 3], slot=0),
        ],
        PAGE,
    )
    batch = planned.batch
    assert batch.token_ids.tolist() == [20, 40, 10, 11, 12, 30, 31]
    assert batch.positions.tolist() == [9, 4, 2, 3, 4, 0, 1]
    assert batch.kv_index.tolist() == [9 * 4 + 1, 2 * 4, 5 * 4 + 2, 5 * 4 + 3, 6 * 4, 4 * 4, 4 * 4 + 1]
    assert batch.num_tokens == 7
    assert batch.num_decodes == 2
    assert batch.decode_slots.tolist() == [1, 0]
    assert batch.decode_lengths.tolist() == [10, 5]
    assert batch.decode_pages.tolist() == [[7, 8, 9], [1, 2, 0]]  # only used pages, padded with page 0
    assert batch.prefills.chunks == (Chunk(2, 3, 2, 3), Chunk(5, 2, 0, 2))
    assert batch.prefills.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.prefills.starts.tolist() == [2, 0]
    assert batch.prefills.slots.tolist() == [3, 2]
    assert batch.prefills.pages.tolist() == [[5, 6], [4, 0]]
    assert [sequence.request for sequence in planned.sampled] == [1, 2, 3]
    assert batch.sample_rows.tolist() == [0, 6, 1]


def test_pages_beyond_the_context_are_left_out() -> None:
    batch = make_batch([plan(0, 3, [1], [9, 8, 7]), plan(1, 0, [1] * 4, [6, 5, 4])], PAGE).batch
    assert batch.decode_pages.tolist() == [[9]]
    assert batch.prefills.pages.tolist() == [[6]]


def test_a_prompt_of_one_token_is_a_prefill_and_its_last_token_alone_a_decode() -> None:
    assert not is_decode(plan(0, 0, [1], [0]))
    assert is_decode(plan(0, 64, [1], [0]))
    assert not is_decode(plan(0, 64, [1, 2], [0]))


def test_nothing_planned_is_an_empty_batch() -> None:
    planned = make_batch([], PAGE)
    batch = planned.batch
    assert batch.num_tokens == batch.num_decodes == 0
    assert batch.prefills.chunks == ()
    assert batch.prefills.cu_seqlens.tolist() == [0]
    assert batch.prefills.pages.shape == (0, 0)
    assert planned.sampled == []
    assert batch.decode_pages.shape == (0, 0)
    assert batch.sample_rows.shape == (0,)


def test_no_sampled_row_in_the_middle_of_a_prompt() -> None:
    assert make_batch([plan(0, 0, [1, 2], [0], sample=False)], PAGE).batch.sample_rows.tolist() == []
