"""Where sequences, their blocks and their tiles lie."""

import pytest
import torch

from splitrank.models.ops.gpu.sequences import place


def test_blocks_and_tiles_are_cut_from_each_sequences_own_first_row() -> None:
    found = place([65, 1, 300], [64, 0, 128], [7, 2, 4], [[5, 6, 9], [1], [3]], "cpu")
    assert (found.num_rows, found.num_sequences, found.num_blocks) == (366, 3, 8)
    assert found.cu_seqlens.tolist() == [0, 65, 66, 366]
    assert found.first_blocks.tolist() == [0, 2, 3]
    assert found.blocks.tolist() == [[0, 0], [0, 64], [1, 65], [2, 66], [2, 130], [2, 194], [2, 258], [2, 322]]
    # The longest context first: 128 + 256, 128 + 128, 128, then 64 tokens before the first sequence, then none.
    assert found.tiles.tolist() == [[2, 322], [2, 194], [2, 66], [0, 0], [1, 65]]
    assert (found.slots.tolist(), found.starts.tolist()) == ([7, 2, 4], [64, 0, 128])
    assert found.pages.tolist() == [[5, 6, 9], [1, 0, 0], [3, 0, 0]]
    tensors = [part for part in vars(found).values() if isinstance(part, torch.Tensor)]
    assert len(tensors) == 7
    assert all(part.data_ptr() % 16 == 0 for part in tensors)  # else each mixture is another kernel to compile


@pytest.mark.parametrize(
    ("lengths", "starts", "message"),
    [
        ([3, 0], [0, 0], r"at least one row, not \[3, 0\]"),
        ([], [], r"at least one row, not \[\]"),
        ([3], [65], r"at a multiple of 64 of its prompt, not at \[65\]"),
    ],
)
def test_what_cannot_be_placed_is_refused(lengths: list[int], starts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place(lengths, starts, [0] * len(lengths), [[0]] * len(lengths), "cpu")
