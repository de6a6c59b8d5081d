"""Numbers for tables on the device: what is written, and when."""

import torch

from splitrank.serving.protocol.messages import NewPages
from splitrank.serving.rank.device_writes import DeviceWrites
from splitrank.serving.rank.request_table import RequestTable
from tests.support.stage_runner import admitted


def test_the_last_value_of_a_place_is_written_when_flushed() -> None:
    pages, scores = torch.zeros(6, dtype=torch.int32), torch.zeros(3, dtype=torch.float64)
    writes = DeviceWrites(pages=pages, scores=scores)
    writes.put("pages", 4, 7)
    writes.put("pages", 4, 9)
    writes.put("pages", 0, 2)
    writes.put("scores", 1, 0.1)
    assert not pages.any()
    writes.flush()
    assert pages.tolist() == [2, 0, 0, 0, 9, 0]
    assert scores.tolist() == [0.0, 0.1, 0.0]
    pages.zero_()
    writes.flush()
    assert not pages.any()


def test_a_table_of_a_gpu_has_pages_and_lengths_when_they_are_read() -> None:
    """Pages that a swap or a snapshot reads, and those of a row that leaves, are written before."""
    table = RequestTable(2, 3, 16, torch.device("cpu"), scratch_page=9)
    table.admit(admitted(5, 1, [1, 2, 3], start=2), None)
    table.add_pages(NewPages(1, [4, 6]))
    assert table.pages[1].tolist() == [0, 0, 0]
    assert table.pages_of(1, 20).tolist() == [4, 6]
    assert table.lengths.tolist() == [0, 2, 0]
    table.add_pages(NewPages(1, [8]))
    table.take(1)
    table.flush()
    assert table.pages.tolist() == [[0, 0, 0], [0, 0, 0], [9, 0, 0]]
