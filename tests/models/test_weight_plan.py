"""The weight plan and its audit: right for every layout, and wrong plans do not pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from splitrank.models.checkpoint import Checkpoint, open_checkpoint
from splitrank.models.config import ModelConfig, read_config
from splitrank.models.loader import check_allocation
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.weight_plan import AuditError, LocalParameter, Piece, WeightPlan, audit_plan, audit_union
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint

LAYOUTS = [((5,), 1), ((5,), 4), ((2, 3), 1), ((1, 2, 2), 2), ((1, 1, 1, 2), 4)]  # partition, tp


class Model:
    def __init__(self, folder: Path, tied: bool) -> None:
        reference = make_reference(random_text_config(num_hidden_layers=5, vocab_size=389, tie_word_embeddings=tied))
        write_checkpoint(reference, folder, experts="mixed", dtype="float32")
        self.config: ModelConfig = read_config(folder)
        self.checkpoint: Checkpoint = open_checkpoint(folder, self.config)

    def plans(self, partition: tuple[int, ...] = (2, 3), tp: int = 2) -> list[WeightPlan]:
        return plan_all_ranks(self.config, tp, partition, "bfloat16", self.checkpoint)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("plan"), request.param)


@pytest.mark.parametrize(("partition", "tp"), LAYOUTS)
def test_every_layout_passes_the_audit(model: Model, partition: tuple[int, ...], tp: int) -> None:
    plans = model.plans(partition, tp)
    assert len(plans) == len(partition) * tp
    for plan in plans:
        audit_plan(plan)
    audit_union(plans, model.checkpoint)


@pytest.mark.parametrize(("partition", "tp"), LAYOUTS)
def test_planned_is_allocated(model: Model, partition: tuple[int, ...], tp: int) -> None:
    for plan in model.plans(partition, tp):
        stage = Stage(model.config, plan.stage, partition, plan.shard, torch.bfloat16, CpuOperations())
        check_allocation(dict(stage.named_parameters()), plan)
        assert sum(parameter.nbytes for parameter in stage.parameters()) == plan.num_bytes


def test_a_parameter_more_or_less_or_of_another_dtype_is_not_what_was_planned(model: Model) -> None:
    plan = model.plans()[0]
    parameters = dict(
        Stage(model.config, plan.stage, (2, 3), plan.shard, torch.bfloat16, CpuOperations()).named_parameters()
    )
    name = plan.parameters[1].name
    for wrong in ({**parameters, "new": parameters[name]}, {**parameters, name: parameters[name].float()}):
        with pytest.raises(AuditError, match="planned"):
            check_allocation(wrong, plan)
    with pytest.raises(AuditError, match=f"parameter {name}: planned .*, allocated None"):
        check_allocation({key: value for key, value in parameters.items() if key != name}, plan)


def test_misaligned_storage_is_refused(model: Model) -> None:
    plan = model.plans()[0]
    parameters = dict(
        Stage(model.config, plan.stage, (2, 3), plan.shard, torch.bfloat16, CpuOperations()).named_parameters()
    )
    name, like = plan.parameters[1].name, parameters[plan.parameters[1].name]
    shifted = torch.empty(like.numel() + 1, dtype=like.dtype)[1:].view(like.shape)
    with pytest.raises(AuditError, match="64 bytes"):
        check_allocation({**parameters, name: torch.nn.Parameter(shifted, requires_grad=False)}, plan)


def test_a_stage_plans_no_tensor_of_another_stage(model: Model) -> None:
    for plan in model.plans((1, 2, 2), 1):
        tensors = {piece.tensor for parameter in plan.parameters for piece in parameter.pieces}
        layers = {int(name.split(".")[1]) for name in tensors if name.startswith("layers.")}
        assert layers == set(plan.stage.layers)
        ends = {name for name in tensors if not name.startswith("layers.")}
        head = "embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
        first, last = {"embed_tokens.weight"}, {head, "norm.weight"}
        assert ends == (first if plan.stage.is_first else last if plan.stage.is_last else set())


# ------------------------------------------------------------------ plans broken on purpose


def stage_parameters(model: Model, plan: WeightPlan) -> dict[str, torch.nn.Parameter]:
    stage = Stage(model.config, plan.stage, (2, 3), plan.shard, torch.bfloat16, CpuOperations())
    return dict(stage.named_parameters())


def with_pieces(plan: WeightPlan, name: str, change: Callable[[tuple[Piece, ...]], tuple[Piece, ...]]) -> WeightPlan:
    assert any(parameter.name == name for parameter in plan.parameters)

    def changed(parameter: LocalParameter) -> LocalParameter:
        return replace(parameter, pieces=change(parameter.pieces)) if parameter.name == name else parameter

    return replace(plan, parameters=tuple(changed(parameter) for parameter in plan.parameters))


def shifted(piece: Piece, box: str, dim: int, by: int) -> Piece:
    ranges = list(getattr(piece, box))
    ranges[dim] = (ranges[dim][0] + by, ranges[dim][1] + by)
    return replace(piece, **{box: tuple(ranges)})


EXPERTS = "layers.1.mlp.experts.gate_up_proj"  # per expert in the mixed form: gate and up apart
IN_PROJ = "layers.0.linear_attn.in_proj.weight"  # six pieces


@pytest.mark.parametrize("name", [EXPERTS, IN_PROJ])
@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: pieces[:-1],
        lambda pieces: pieces + pieces[1:2],
        lambda pieces: (pieces[1], *pieces[1:]),
        lambda pieces: (shifted(pieces[0], "target", -2, 1), *pieces[1:]),
        lambda pieces: (*pieces[:-1], shifted(pieces[-1], "target", -2, 1)),
        lambda pieces: (replace(pieces[0], source=((0, 1), *pieces[0].source[1:])), *pieces[1:]),
    ],
    ids=["dropped", "twice", "twice for another", "onto its neighbour", "out of the parameter", "too short a source"],
)
def test_a_parameter_not_filled_exactly_once_fails_the_audit(model: Model, name: str, change) -> None:
    plan = model.plans()[0]
    audit_plan(plan)
    with pytest.raises(AuditError, match=rf"rank 0 \(stage 0, tp 0\): parameter {name}"):
        audit_plan(with_pieces(plan, name, change))


@pytest.mark.parametrize(
    ("name", "change", "tensor"),
    [
        (IN_PROJ, lambda p: p[1:], "in_proj_qkv"),
        (IN_PROJ, lambda p: (shifted(p[0], "source", 0, 1), *p[1:]), "in_proj_qkv"),
        (IN_PROJ, lambda p: (*p[:-1], replace(p[-1], tensor=p[-2].tensor)), "in_proj_a"),
        (EXPERTS, lambda p: (replace(p[0], tensor=p[1].tensor), *p[1:]), "experts.0.gate_proj"),
        ("layers.0.mlp.experts.down_proj", lambda p: (shifted(p[0], "source", 2, 8),), "experts.down_proj"),
        ("layers.0.linear_attn.out_proj.weight", lambda p: (shifted(p[0], "source", 1, -1),), "out_proj"),
        ("embed_tokens.weight", lambda p: (shifted(p[0], "source", 0, 1),), "embed_tokens"),
    ],
    ids=["dropped", "overlap", "another's", "up twice", "down shifted", "columns shifted", "vocabulary shifted"],
)
def test_ranks_that_together_leave_a_hole_fail_the_audit(model: Model, name: str, change, tensor: str) -> None:
    plans = model.plans()
    audit_union(plans, model.checkpoint)
    plans[0] = with_pieces(plans[0], name, change)
    with pytest.raises(AuditError, match=rf"model\.safetensors: tensor '.*{tensor}.*': -?\d+ of \d+ elements"):
        audit_union(plans, model.checkpoint)


def test_a_missing_rank_fails_the_audit(model: Model) -> None:
    for missing in range(4):
        with pytest.raises(AuditError, match="elements planned"):
            audit_union([plan for rank, plan in enumerate(model.plans()) if rank != missing], model.checkpoint)


def test_overlap_with_another_than_the_neighbour_is_seen(model: Model) -> None:
    """Volumes add up to the whole, and no two boxes that are neighbours in order overlap."""
    boxes = (((0, 10), (0, 2)), ((1, 10), (2, 4)), ((5, 7), (1, 2)))
    pieces = tuple(Piece("x", box, box) for box in boxes)
    plan = replace(model.plans()[0], parameters=(LocalParameter("p", (10, 4), "float32", pieces),))
    assert sum((b - a) * (d - c) for (a, b), (c, d) in boxes) == 10 * 4
    with pytest.raises(AuditError, match="p is not filled exactly once"):
        audit_plan(plan)
