"""Each codec on the demo model's own activations stays inside the bound that its format promises."""

import pytest
import torch

from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path
from tests.support.codec_errors import codec_error, partial_sums

# Rounding to one of 2Q + 1 steps that span a block's largest element, twice; of a normal distribution the largest of 32
# is about 2 standard deviations: 2 / Q / sqrt(12) a round trip, and sqrt(2) for two of them.
TYPICAL = {"int8": 0.7 / 127, "int6": 0.7 / 31, "int4": 0.7 / 7}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def sums(request: pytest.FixtureRequest) -> dict[str, list[torch.Tensor]]:
    return partial_sums(demo_checkpoint_path(), request.param)


@pytest.mark.parametrize("codec", ["none", *TYPICAL])
def test_every_sum_of_the_model_is_within_the_bound(sums: dict[str, list[torch.Tensor]], codec: str) -> None:
    assert len(sums) == 1 + 2 * 8
    errors = {place: codec_error(parts, codec) for place, parts in sums.items()}
    assert max(error.worst_share for error in errors.values()) <= 1.0
    if codec == "none":
        return
    for place, error in errors.items():
        if place != "embedding":  # one rank's rows are zeros: a single round trip of values that are quantised already
            assert 0.2 * TYPICAL[codec] < error.relative < 3 * TYPICAL[codec], place
