"""Set before anything imports transformers: a test never asks the network."""

import os
from pathlib import Path

# Engine and rank processes do not look into the current folder; those of the tests need ``tests.fake_rank``.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the proofs whole, which take minutes more (README.md)")
