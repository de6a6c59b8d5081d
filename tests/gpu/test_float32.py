"""float32 at the widths of Qwen3.5-35B-A3B, four layers of dummy weights: blocks fit the card, and a token has the
logits of its prompt when it is computed alone, and among 64."""

import json
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs 1 GPU, this machine has 0", allow_module_level=True)

from scripts.bench_gpu import config_35b
from tests.support.stage_runner import StageRunner, random_tokens, worst_row_error

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

VOCABULARY, ROWS, PROMPT = 8192, 64, 200
BOUND = 1e-4  # as between layouts (tests/gpu/test_layouts.py): sums in another order


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "exact"])
def runner(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[StageRunner]:
    folder = tmp_path_factory.mktemp("float32")
    (folder / "config.json").write_text(json.dumps(config_35b(4) | {"vocab_size": VOCABULARY}))
    runner = StageRunner(
        folder, folder, device="cuda", devices=(0,), load_format="dummy", page_size=64, num_pages=300,
        max_model_len=1024, max_running_requests=ROWS, chunked_prefill_size=1024, max_prefill_tokens=1024,
        exact=request.param, load_timeout_s=300.0,
    )  # fmt: skip
    yield runner
    runner.worker.close()


def test_a_token_has_the_logits_of_its_prompt(runner: StageRunner) -> None:
    tokens = random_tokens(PROMPT, VOCABULARY, seed=1)
    whole = runner.start(PROMPT)
    (expected,) = runner.step(whole.take(tokens))
    runner.end(whole)
    assert expected.isfinite().all()
    sequences = [runner.start(PROMPT, slot) for slot in range(ROWS)]
    for sequence in sequences:
        runner.step(sequence.take(tokens[: PROMPT - 2]))
    alone = runner.step(sequences[0].generated(tokens[-2]))
    among = runner.step(*(sequence.generated(tokens[-2]) for sequence in sequences[1:]))
    last = runner.step(*(sequence.generated(tokens[-1]) for sequence in sequences))
    for sequence in sequences:
        runner.end(sequence)
    assert worst_row_error(torch.cat([*alone, *among]), expected[-2:-1].expand(ROWS, -1)) <= BOUND
    assert worst_row_error(torch.cat(last), expected[-1:].expand(ROWS, -1)) <= BOUND
