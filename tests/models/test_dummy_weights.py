"""Dummy weights: the same model in every layout."""

import json
from pathlib import Path

import pytest
import torch

from splitrank.models.config import ModelConfig, read_config
from splitrank.models.dummy_weights import dummy_values, fill_dummy, tensor_shapes
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.weight_plan import Runs, WeightPlan, runs_of
from tests.support.checkpoints import hub_config, random_text_config


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(hub_config(random_text_config(), "text", "float32", tied=False)))
    return read_config(file)


def filled(config: ModelConfig, plan: WeightPlan, partition: tuple[int, ...]) -> dict[str, torch.Tensor]:
    stage = Stage(config, plan.stage, partition, plan.shard, torch.float32, CpuOperations())
    for parameter in stage.parameters():
        parameter.data.fill_(torch.nan)
    assert fill_dummy(stage, plan, config) == plan.num_bytes
    return {name: parameter.data for name, parameter in stage.named_parameters()}


def whole(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    every = tuple((0, size) for size in shape)
    return dummy_values(name, shape, runs_of(shape, every), torch.device("cpu")).view(shape)


def test_every_layout_holds_slices_of_the_same_tensors(model: ModelConfig) -> None:
    shapes = tensor_shapes(model)
    for tp, partition in ((1, (4,)), (2, (1, 3)), (2, (4,))):
        for plan in plan_all_ranks(model, tp, partition, "float32"):
            parameters = filled(model, plan, partition)
            for planned in plan.parameters:
                for piece in planned.pieces:
                    source = whole(piece.tensor, shapes[piece.tensor])[tuple(slice(*b) for b in piece.source)]
                    target = parameters[planned.name][tuple(slice(*b) for b in piece.target)]
                    assert torch.equal(target, source.reshape(target.shape)), planned.name


def test_values_spread_and_differ_between_tensors() -> None:
    """Uniform: mean 0 and variance a third of the amplitude's square, within six standard errors."""
    shape, count = (512, 256), 512 * 256
    one, other = (dummy_values(name, shape, Runs(0, 1, count, count), torch.device("cpu")) for name in ("a", "b"))
    amplitude = 1.2 / 16
    assert one.abs().max() <= amplitude
    assert abs(float(one.mean())) < 6 * amplitude / (3 * count) ** 0.5
    assert abs(float(one.square().mean()) / (amplitude**2 / 3) - 1) < 6 * (0.8 / count) ** 0.5
    correlation = float((one * other).mean()) / (amplitude**2 / 3)
    assert abs(correlation) < 6 / count**0.5
