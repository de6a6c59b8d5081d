"""Faults planted in the copying itself, under a right plan: the audit of the load finds each."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from splitrank.models import loader
from splitrank.models.checkpoint import Checkpoint, open_checkpoint
from splitrank.models.config import ModelConfig, read_config
from splitrank.models.loader import load_weights
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.weight_plan import AuditError, WeightPlan
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint

Blocks = list[Any]
PARTITION, TP = (2, 3), 2


@pytest.fixture(scope="module", params=["fused", "per_expert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, Checkpoint]:
    reference = make_reference(random_text_config(num_hidden_layers=5))
    folder = write_checkpoint(reference, tmp_path_factory.mktemp("audit"), experts=request.param, shards=2)
    config = read_config(folder)
    return config, open_checkpoint(folder, config)


def load(model: tuple[ModelConfig, Checkpoint], rank: int) -> None:
    config, checkpoint = model
    plan: WeightPlan = plan_all_ranks(config, TP, PARTITION, "float32", checkpoint)[rank]
    load_weights(Stage(config, plan.stage, PARTITION, plan.shard, torch.float32, CpuOperations()), plan, checkpoint)


def swap_targets(blocks: Blocks) -> Blocks:
    """Everything is written once, but two blocks of the same size are at each other's place."""
    return [replace(blocks[0], target=blocks[1].target), replace(blocks[1], target=blocks[0].target), *blocks[2:]]


def read_elsewhere(blocks: Blocks) -> Blocks:
    """The right place, from one element further in the file."""
    return [replace(blocks[0], source=replace(blocks[0].source, first=blocks[0].source.first + 1)), *blocks[1:]]


# What becomes of the blocks of one piece, and what is said of it. A block of the tests is a few rows.
FAULTS: dict[str, tuple[Callable[[Blocks], Blocks], str]] = {
    "first skipped": (lambda blocks: blocks[1:], r"element 0 of \d+ was not written"),
    "last skipped": (lambda blocks: blocks[:-1], r"element \d+ of \d+ was not written"),
    "all skipped": (lambda blocks: [], r"element 0 of \d+ was not written"),
    "one twice": (lambda blocks: [*blocks, blocks[1]], r"element \d+ of \d+ was written twice"),
    "one twice, another never": (lambda blocks: [*blocks[:-1], blocks[0]], r"element \d+ of \d+ was written twice"),
    "onto its neighbour": (lambda blocks: [replace(blocks[0], target=blocks[0].target + 1), *blocks[1:]], "element"),
    "swapped places": (
        swap_targets,
        r"elements \d+ to \d+ came from element \d+ of tensor '.*' of .*, the plan names element",
    ),
    "read elsewhere": (
        read_elsewhere,
        r"elements 0 to \d+ came from element \d+ of tensor '.*' of .*, the plan names element",
    ),
}

PARAMETERS = {  # by the rank that is loaded: where the fault is, as one that names every kind of piece
    1: ["embed_tokens.weight", "layers.0.linear_attn.in_proj.weight", "layers.1.mlp.experts.down_proj"],
    3: ["lm_head.weight", "layers.3.self_attn.o_proj.weight", "layers.4.mlp.experts.gate_up_proj"],
}
WHERE = {1: "rank 1 (stage 0, tp 1)", 3: "rank 3 (stage 1, tp 1)"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("rank", "name"), [(rank, name) for rank, names in PARAMETERS.items() for name in names])
def test_a_planted_fault_is_found(
    model: tuple[ModelConfig, Checkpoint], monkeypatch: pytest.MonkeyPatch, rank: int, name: str, fault: str
) -> None:
    change, message = FAULTS[fault]
    really_blocks, really_copy, planted = loader._blocks, loader._copy_pieces, []

    def copy_pieces(planned: Any, *others: Any) -> Iterator[Any]:
        faulty = planned.name == name

        def blocks(*arguments: Any) -> Iterator[Any]:
            found = list(really_blocks(*arguments))
            if faulty and not planted:  # the first piece
                assert len(found) > 2
                planted.append(name)
                return iter(change(found))
            return iter(found)

        monkeypatch.setattr(loader, "_blocks", blocks)
        return really_copy(planned, *others)

    monkeypatch.setattr(loader, "_copy_pieces", copy_pieces)
    monkeypatch.setattr(loader, "BLOCK_BYTES", 256)
    with pytest.raises(AuditError, match=f"^{re.escape(WHERE[rank])}: parameter {name}: {message}") as caught:
        load(model, rank)
    assert planted == [name]
    assert "\n" not in str(caught.value)


def test_a_copy_into_another_parameter_is_found(
    model: tuple[ModelConfig, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    really_copy = loader._copy_pieces
    others: list[torch.Tensor] = []

    def copy_pieces(planned: Any, parameter: torch.Tensor, *rest: Any) -> Iterator[Any]:
        if planned.name.endswith(("k_norm.weight", "q_norm.weight")):
            others.append(parameter)
            for copied in really_copy(planned, others[0], *rest):  # the second goes to the first, too
                shift = (others[0].data_ptr() - parameter.data_ptr()) // parameter.element_size()
                yield replace(copied, start=copied.start + shift, stop=copied.stop + shift)
        else:
            yield from really_copy(planned, parameter, *rest)

    monkeypatch.setattr(loader, "_copy_pieces", copy_pieces)
    with pytest.raises(AuditError, match=r"layers\.3\.self_attn\.k_norm\.weight: elements -?\d+ to -?\d+ of 32 were"):
        load(model, 2)


def test_a_parameter_without_its_last_piece_is_found(model: tuple[ModelConfig, Checkpoint]) -> None:
    """The loader's audit does not trust that of the plan."""
    config, checkpoint = model
    plan = plan_all_ranks(config, 1, (5,), "float32", checkpoint)[0]
    broken = next(p for p in plan.parameters if p.name == "layers.0.linear_attn.in_proj.weight")
    object.__setattr__(broken, "pieces", broken.pieces[:-1])
    with pytest.raises(
        AuditError, match=r"layers\.0\.linear_attn\.in_proj\.weight: element \d+ of \d+ was not written"
    ):
        load_weights(Stage(config, plan.stage, (5,), plan.shard, torch.float32, CpuOperations()), plan, checkpoint)
