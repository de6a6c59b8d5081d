"""Where parameters lie: large ones begin at a huge page and ask for such, and none is larger than its values."""

from pathlib import Path

import pytest
import torch

from splitrank.models.ops.cpu import memory

HUGE = 2 * 2**20


def flags_at(address: int) -> list[str]:
    """What the kernel keeps of the mapping around ``address`` (``VmFlags`` of smaps)."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        span = line.split(" ")[0].split("-")
        if len(span) == 2 and not line.startswith("Vm"):
            here = int(span[0], 16) <= address < int(span[1], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping at {address:#x}")


@pytest.mark.parametrize("num_bytes", [HUGE, HUGE + 4096, 3 * HUGE + 70])
def test_whole_huge_pages_are_asked_for_and_the_rest_is_small(num_bytes: int) -> None:
    tensor = memory.empty(num_bytes, dtype=torch.uint8)
    assert tensor.data_ptr() % HUGE == 0
    assert "hg" in flags_at(tensor.data_ptr())
    assert "hg" in flags_at(tensor.data_ptr() + num_bytes // HUGE * HUGE - 1)
    if num_bytes % HUGE:
        assert "hg" not in flags_at(tensor.data_ptr() + num_bytes - 1)


@pytest.mark.parametrize("num_bytes", [0, 100, 70_000, HUGE - 1])
def test_what_fills_no_huge_page_asks_for_none(num_bytes: int) -> None:
    tensor = memory.empty(num_bytes, dtype=torch.uint8)
    assert len(tensor) == num_bytes
    assert tensor.data_ptr() % 16 == 0
    if num_bytes:
        tensor.fill_(7)
        assert "hg" not in flags_at(tensor.data_ptr())
