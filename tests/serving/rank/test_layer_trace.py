"""A rank's trace: every token once a layer, with the same digests however its prompt is cut and whatever is beside."""

from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
import torch

from splitrank.serving.gsm8k.trace import LayoutTrace, Place, read_trace
from splitrank.serving.protocol.messages import EMBEDDING, LOGITS, ChunkPlan, NewPages, StepPlan
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.sampler import row_digest, sample
from splitrank.serving.rank.sampling_state import SamplingState
from splitrank.serving.rank.worker import Worker
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import admitted, launch_spec, random_tokens

GREEDY = SamplingParams(temperature=0.0, max_tokens=100)
PROMPT, OTHER = random_tokens(20, 384, seed=1), random_tokens(7, 384, seed=2)
PAGES, OTHER_PAGES = [9, 3, 20], [14, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced")
    return write_checkpoint(make_reference(random_text_config(), seed=5), path, dtype="bfloat16")


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> "Runs":
    torch.set_num_threads(1)
    return Runs(folder, tmp_path)


class Runs:
    """Each run is a worker of its own that executes plans, and its trace."""

    def __init__(self, folder: Path, tmp_path: Path) -> None:
        self.folder, self.tmp_path, self.count = folder, tmp_path, 0

    def trace(self, *plans: dict[str, list]) -> LayoutTrace:  # type: ignore[type-arg]
        self.count += 1
        run_dir, trace_dir = (self.tmp_path / f"{name}{self.count}" for name in ("run", "trace"))
        run_dir.mkdir()
        trace_dir.mkdir()
        spec = launch_spec(self.folder, run_dir, dtype="bfloat16", exact=True, trace_dir=str(trace_dir))
        with closing(Worker(spec, rank=0)) as worker:
            worker.load()
            self.num_layers = worker.config.num_hidden_layers
            for step, parts in enumerate(plans):
                worker.execute(StepPlan(step, "", **parts), "")
        return read_trace("pp=1", trace_dir)


def begin(request: int, slot: int, pages: list[int], prompt: list[int]) -> dict[str, list]:  # type: ignore[type-arg]
    return {"admitted": [admitted(request, slot, prompt, GREEDY)], "pages": [NewPages(slot, pages)]}


def test_every_token_once_a_layer(runs: Runs) -> None:
    found = runs.trace(
        {**begin(0, 1, PAGES, PROMPT), "chunks": [ChunkPlan(1, len(PROMPT), sample=True)]}, {"decodes": [1]}
    )
    halves = [(EMBEDDING, 0), *product(range(runs.num_layers), (0, 1))]
    places = {Place(0, position, *half) for position in range(len(PROMPT) + 1) for half in halves}
    sampled = {Place(0, position, LOGITS) for position in (len(PROMPT) - 1, len(PROMPT))}
    assert found.digests.keys() == places | sampled
    assert {rank for ranks in found.digests.values() for rank in ranks} == {"rank 0 (stage 0, tp 0)"}
    of_token = [{*found.digests[Place(0, 5, *half)].values()} for half in halves]
    assert len(set.union(*of_token)) == len(halves)  # no two hand on the same


def test_chunks_and_other_requests_change_no_digest(runs: Runs) -> None:
    alone = runs.trace(
        {**begin(0, 1, PAGES, PROMPT), "chunks": [ChunkPlan(1, len(PROMPT), sample=True)]}, {"decodes": [1]}
    )
    first, other = begin(0, 1, PAGES, PROMPT), begin(1, 0, OTHER_PAGES, OTHER)
    beside = runs.trace(
        {
            "admitted": [*other["admitted"], *first["admitted"]],
            "pages": [*other["pages"], *first["pages"]],
            "chunks": [ChunkPlan(0, len(OTHER), sample=True), ChunkPlan(1, 8, sample=False)],
        },
        {"decodes": [0], "chunks": [ChunkPlan(1, len(PROMPT) - 8, sample=True)]},
        {"decodes": [1, 0]},
    )
    assert {place: ranks for place, ranks in beside.digests.items() if place.request == 0} == alone.digests


def test_a_row_of_logits_has_a_digest_of_its_bits() -> None:
    logits = torch.linspace(-3.0, 3.0, 96).view(2, 48)
    params = SamplingParams(temperature=0.0, max_tokens=9)
    states = [SamplingState([1, 2], params, ()) for _ in range(2)]
    first, second = sample(logits, states, digests=True)
    assert first.digest == row_digest(logits[0]) != second.digest
    changed = logits[0].clone()
    changed[7] = torch.nextafter(changed[7], torch.tensor(9.0))  # one last bit
    assert row_digest(changed) != row_digest(logits[0])
    (plain,) = sample(logits[:1], states[:1])
    assert plain.digest == b""
