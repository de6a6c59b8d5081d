"""``make_layers``: only this stage's layers exist, and a stage is never a default."""

import inspect

import pytest
import torch
from torch import nn

from splitrank.models.config import parse_config
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.sharding import TensorShard, stage_slice
from splitrank.models.stage import PPMissingLayer, make_layers
from tests.support.checkpoints import hub_config, random_text_config


class Recorder:
    """Builds layers, and remembers which."""

    def __init__(self) -> None:
        self.built: list[int] = []

    def __call__(self, layer: int) -> nn.Module:
        self.built.append(layer)
        return nn.Linear(3, 3)


def test_rank_and_size_have_no_default() -> None:
    parameters = inspect.signature(make_layers).parameters
    assert [p.default is inspect.Parameter.empty for p in parameters.values()] == [True] * 4 + [False]
    with pytest.raises(TypeError, match="pp_rank"):
        make_layers(4, Recorder(), pp_size=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="pp_size"):
        make_layers(4, Recorder(), pp_rank=0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("num_layers", "partition", "expected"),
    [
        (5, None, [[0, 1, 2], [3, 4]]),
        (7, None, [[0, 1, 2], [3, 4], [5, 6]]),
        (4, None, [[0], [1], [2], [3]]),
        (3, None, [[0, 1, 2]]),
        (5, (1, 4), [[0], [1, 2, 3, 4]]),
        (6, (3, 1, 2), [[0, 1, 2], [3], [4, 5]]),
    ],
)
def test_only_this_stage_is_built_under_global_indices(
    num_layers: int, partition: tuple[int, ...] | None, expected: list[list[int]]
) -> None:
    for pp_rank, here in enumerate(expected):
        recorder = Recorder()
        layers = make_layers(num_layers, recorder, pp_rank, len(expected), partition)
        assert recorder.built == here
        assert len(layers) == num_layers
        assert [i for i, layer in enumerate(layers) if not isinstance(layer, PPMissingLayer)] == here
        assert {name.split(".")[0] for name, _ in layers.named_parameters()} == {str(i) for i in here}


def test_a_missing_layer_holds_nothing_and_refuses_to_run() -> None:
    missing = make_layers(4, Recorder(), 1, 2)[1]
    assert isinstance(missing, PPMissingLayer)
    assert list(missing.parameters()) == list(missing.buffers()) == []
    with pytest.raises(AssertionError, match="layer 1 is not on stage 1"):
        missing(torch.zeros(1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, 2, 2), ("pp_rank 2", "0..1")),
        ((4, -1, 2), ("pp_rank -1", "0..1")),
        ((4, 0, 0), ("pp_rank 0",)),
        ((4, 0, 5), ("pp 5", "4 layers")),
        ((4, 0, 2, (4,)), ("[4]", "1 stages", "pp is 2")),
        ((4, 0, 2, (2, 3)), ("[2, 3]", "sums to 5", "4 layers")),
        ((4, 0, 2, (4, 0)), ("[4, 0]", "without layers")),
        ((4, 0, 2, (5, -1)), ("[5, -1]", "without layers")),
    ],
)
def test_wrong_splits_are_refused_with_the_numbers(arguments: tuple, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        make_layers(arguments[0], Recorder(), *arguments[1:])
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_is_on_the_first_stage_and_the_head_on_the_last(tied: bool) -> None:
    config = parse_config(hub_config(random_text_config(), "text", "float32", tied))
    for pp_rank in range(3):
        stage = Stage(
            config, stage_slice(pp_rank, 3, (1, 2, 1)), (1, 2, 1), TensorShard(0, 1), torch.float32, CpuOperations()
        )
        ends = {name for name, _ in stage.named_parameters() if not name.startswith("layers.")}
        assert ends == [{"embed_tokens.weight"}, set(), {"norm.weight", "lm_head.weight"}][pp_rank]


def test_a_tied_head_is_the_embedding_on_a_single_stage() -> None:
    config = parse_config(hub_config(random_text_config(), "text", "float32", True))
    stage = Stage(config, stage_slice(0, 1, (4,)), (4,), TensorShard(0, 1), torch.float32, CpuOperations())
    assert "lm_head.weight" not in dict(stage.named_parameters())
    assert stage.lm_head.weight is stage.embed_tokens.weight
