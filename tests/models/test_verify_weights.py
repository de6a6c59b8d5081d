"""The slow check of loaded weights: silent on right ones in every layout and form; it finds what counting cannot."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.models import loader
from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import read_config
from splitrank.models.loader import load_weights
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.safetensors_header import TensorEntry
from splitrank.models.torch_dtype import torch_dtype
from splitrank.models.verify_weights import verify_weights
from splitrank.models.weight_plan import AuditError, Runs, WeightPlan
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint

LAYOUTS = [((5,), 1), ((5,), 2), ((5,), 4), ((2, 3), 1), ((1, 2, 2), 2)]  # partition, tp


class Folder:
    def __init__(self, path: Path, tied: bool, **form: Any) -> None:
        reference = make_reference(random_text_config(num_hidden_layers=5, vocab_size=389, tie_word_embeddings=tied))
        self.config = read_config(write_checkpoint(reference, path, shards=2, **form))
        self.checkpoint = open_checkpoint(path, self.config)

    def plans(self, partition: tuple[int, ...], tp: int, dtype: str) -> list[WeightPlan]:
        return plan_all_ranks(self.config, tp, partition, dtype, self.checkpoint)

    def load(self, plan: WeightPlan, partition: tuple[int, ...]) -> Stage:
        dtype = torch_dtype(plan.parameters[1].dtype)
        stage = Stage(self.config, plan.stage, partition, plan.shard, dtype, CpuOperations())
        load_weights(stage, plan, self.checkpoint)
        return stage

    def verify(self, stage: Stage, plan: WeightPlan) -> None:
        verify_weights(stage, self.config, plan.shard, self.checkpoint, str(plan.position))


@pytest.fixture(scope="module", params=["fused", "per_expert", "mixed"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, form: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("verify"), request.param, experts=form)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("partition", "tp"), LAYOUTS)
def test_right_weights_of_every_layout_pass(folder: Folder, partition: tuple[int, ...], tp: int, dtype: str) -> None:
    for plan in folder.plans(partition, tp, dtype):
        folder.verify(folder.load(plan, partition), plan)


def test_one_bit_of_any_parameter_is_found(folder: Folder) -> None:
    """The last value of each in turn: every parameter is compared, to its end."""
    for plan in folder.plans((2, 3), 2, "bfloat16"):
        stage = folder.load(plan, (2, 3))
        for name, parameter in stage.named_parameters():
            bits = parameter.data.view(torch.int16 if parameter.dtype == torch.bfloat16 else torch.int32).view(-1)
            bits[-1] ^= 1
            with pytest.raises(
                AuditError,
                match=rf"^{re.escape(str(plan.position))}: parameter {name} differs from tensor '.*' of .*: at",
            ):
                folder.verify(stage, plan)
            bits[-1] ^= 1
        folder.verify(stage, plan)


# ------------------------------------------------------------------ faults that the audit of the load cannot see

Read = Callable[[Any, TensorEntry, Runs], torch.Tensor]


def stale(really_read: Read) -> Read:
    """The buffer is not filled: it holds what was read before."""
    last: list[torch.Tensor] = []

    def read(files: Any, entry: TensorEntry, runs: Runs) -> torch.Tensor:
        if entry.name.endswith("o_proj.weight") and last:
            return last[0].flatten()[: runs.count * runs.length].view(runs.count, runs.length)
        found = really_read(files, entry, runs)
        if found.numel() > 64 * 64:
            last[:] = [found.clone()]
        return found

    return read


def one_element_late(really_read: Read) -> Read:
    """The read begins one element before the one it was asked for."""

    def read(files: Any, entry: TensorEntry, runs: Runs) -> torch.Tensor:
        before = replace(runs, first=runs.first - 1) if entry.name.endswith("o_proj.weight") and runs.first else runs
        return really_read(files, entry, before)

    return read


@pytest.mark.parametrize("fault", [stale, one_element_late])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_read_that_gives_other_bytes_is_found(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Read], Read], tp: int
) -> None:
    monkeypatch.setattr(loader._Files, "read", fault(loader._Files.read))
    plan = folder.plans((5,), tp, "float32")[-1]
    stage = folder.load(plan, (5,))  # the audit of the load says nothing
    words = rf"^rank {tp - 1} \(stage 0, tp {tp - 1}\): parameter layers\.3\.self_attn\.o_proj\.weight differs from "
    with pytest.raises(
        AuditError, match=words + r"tensor 'model\.language_model\.layers\.3.*' of .*model-0000\d-of-00002"
    ) as e:
        folder.verify(stage, plan)
    assert "\n" not in str(e.value)


def test_a_plan_that_names_another_expert_is_found(folder: Folder) -> None:
    """A plan that is complete in itself, and wrong: two experts of a layer change places."""
    plan = folder.plans((5,), 2, "float32")[1]
    experts = next(p for p in plan.parameters if p.name == "layers.0.mlp.experts.down_proj")
    fused = experts.pieces[0]
    pieces = list(experts.pieces if len(experts.pieces) > 1 else fused.by_first_dimension())
    first, second = pieces[1:3]
    pieces[1:3] = replace(first, target=second.target), replace(second, target=first.target)
    object.__setattr__(experts, "pieces", tuple(pieces))
    stage = folder.load(plan, (5,))
    with pytest.raises(AuditError, match=r"parameter layers\.0\.mlp\.experts\.down_proj differs"):
        folder.verify(stage, plan)
