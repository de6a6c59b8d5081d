"""What a rank takes of its device's memory at start, for steps that the warm-up does not run."""

from pathlib import Path

import msgspec
import pytest

from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from splitrank.serving.rank.device_reserve import reserve_bytes
from splitrank.serving.rank.prompt_logprobs import MAX_LOGITS
from tests.support.stage_runner import launch_spec

SPEC = {"vocab_size": 248_320, "max_running_requests": 256, "max_prefill_tokens": 8192, "prefix_cache_bytes": 2**30}
PEAK = 2**31
SCORES, BY_HOST = 8 * 4 * MAX_LOGITS, 8 * 256 * 248_320


@pytest.mark.parametrize(
    ("longest", "draws", "expected"),
    [
        (8192, False, PEAK * 256 // 8192 + 2**30),
        (8192, True, PEAK * 256 // 8192 + 2**30 + SCORES + BY_HOST),
        (4096, False, PEAK * (8192 + 256 - 4096) // 4096 + 2**30),  # two such prompts fit a step
    ],
)
def test_the_reserve_of_a_rank(tmp_path: Path, longest: int, draws: bool, expected: int) -> None:
    spec = msgspec.structs.replace(launch_spec(demo_checkpoint_path(), tmp_path), **SPEC)
    assert reserve_bytes(spec, longest, PEAK, draws) == expected
