"""One server for all tests that only ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.servers import Server, temporary_folder
from tests.support.forked import forked_children


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The demo over two stages, in float32, where the composition of a batch does not change a greedy token."""
    with Server("--pp", 2, "--dtype", "float32", "--max-model-len", 2048) as server:
        yield server


@pytest.fixture
def temporary() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def forked_ranks() -> Iterator[None]:
    """For modules that show what an ``LLM`` answers, not how its processes start and end."""
    with forked_children():
        yield
