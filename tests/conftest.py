"""What holds for all tests: the network is never asked (set before anything imports transformers), Triton's kernels are
interpreted where there is no GPU (set before anything imports Triton), and ``--full``."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

# Engine and rank processes do not look into the current folder; those of the tests need ``tests.support.fake_rank``.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


from tests.support.interpreter import speed_up_interpreter
from tests.support.limits import scaled

# On cores that ranks and proofs share, torch's threads spin for each other most of the time: with two, the contract of
# the collectives took ten times as much CPU time, and longer. Ranks have their own number.
torch.set_num_threads(1)
speed_up_interpreter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the proofs whole, which takes minutes more (tests/README.md)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        whole = pytest.mark.skip(reason="takes minutes: only with --full")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(whole)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collection imports stays to the end: the collector does not look at its million objects again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # modules whose types have cycles count what is left at the exit


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Each test's limit, scaled when the test begins."""
    marker = item.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else item.config.getoption("timeout")
    item.add_marker(pytest.mark.timeout(scaled(seconds)), append=False)
    return (yield)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the proofs are to be whole."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(autouse=True)
def _own_random_numbers() -> None:
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)
