"""What holds for all tests: the network is never asked (set before anything imports transformers), Triton's kernels are
interpreted where there is no GPU (set before anything imports Triton), and ``--full``."""

import os
from pathlib import Path

# Engine and rank processes do not look into the current folder; those of the tests need ``tests.fake_rank``.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the proofs whole, which takes minutes more (README.md)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        whole = pytest.mark.skip(reason="takes minutes: only with --full")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(whole)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the proofs are to be whole."""
    return bool(request.config.getoption("--full"))
