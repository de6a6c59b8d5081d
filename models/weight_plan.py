"""The weight plan: every parameter of one rank, and the exact slices of the checkpoint that fill it. No torch here.

A tensor of another stage is in no piece of the plan, so the loader cannot load it, from fused and per-expert
checkpoints alike. ``audit_plan`` and ``audit_union`` check that plans are complete before a byte is read.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from splitrank.comm.position import MeshPosition
from splitrank.models.checkpoint import Checkpoint
from splitrank.models.config import FULL, ModelConfig
from splitrank.models.dtypes import DTYPES
from splitrank.models.layer_shapes import LayerShapes, length
from splitrank.models.sharding import Range, StageSlice, TensorShard
from splitrank.models.tensor_names import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    expert_name,
    fused_expert_name,
    per_expert_projections,
)

Box = tuple[Range, ...]


@dataclass(frozen=True)
class Piece:
    """A box of a checkpoint tensor that fills a box of a local parameter (of equal shape up to dimensions of 1)."""

    tensor: str  # canonical name
    source: Box
    target: Box

    def by_first_dimension(self) -> Iterator["Piece"]:
        """One piece for each index of the first dimension, which source and target have in common."""
        (source, *source_rest), (target, *target_rest) = self.source, self.target
        assert length(source) == length(target), self
        for index in range(length(source)):
            here, there = source[0] + index, target[0] + index
            yield Piece(self.tensor, ((here, here + 1), *source_rest), ((there, there + 1), *target_rest))


@dataclass(frozen=True)
class LocalParameter:
    """A parameter as the module holds it: name with the global layer index, local shape, computing dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    def contiguous_pieces(self) -> Iterator[Piece]:
        """The pieces, cut so that each fills a contiguous range of the parameter (half an expert, for example)."""
        for piece in self.pieces:
            if runs_of(self.shape, piece.target).count == 1:
                yield piece
            else:
                yield from piece.by_first_dimension()

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].num_bytes


@dataclass(frozen=True)
class WeightPlan:
    """All local parameters of (stage, tensor rank)."""

    stage: StageSlice
    shard: TensorShard
    parameters: tuple[LocalParameter, ...]

    @property
    def num_bytes(self) -> int:
        return sum(parameter.num_bytes for parameter in self.parameters)

    @property
    def position(self) -> MeshPosition:
        """The rank that the plan is for."""
        return MeshPosition(self.stage.pp_rank, self.stage.pp_size, self.shard.rank, self.shard.size)


def box_size(box: Box) -> int:
    """Elements of a box."""
    return prod(stop - start for start, stop in box)


@dataclass(frozen=True)
class Runs:
    """A box as it lies in a tensor in row-major order: ``count`` runs of ``length`` elements, ``stride`` apart."""

    first: int
    count: int
    length: int
    stride: int

    def at(self, number: int) -> int:
        """Where element ``number`` of the box, in the box's own order, lies in the tensor."""
        run, offset = divmod(number, self.length)
        return self.first + run * self.stride + offset


def runs_of(shape: tuple[int, ...], box: Box) -> Runs:
    """The runs of ``box`` in a tensor of ``shape``. Only boxes whose runs are evenly spaced are supported."""
    axis = max((dim for dim, bounds in enumerate(box) if bounds != (0, shape[dim])), default=0)
    walked = next((dim for dim in range(axis) if box[dim][1] - box[dim][0] > 1), axis)
    assert all(box[dim] == (0, shape[dim]) for dim in range(walked + 1, axis)), (shape, box)
    return Runs(
        first=sum(start * prod(shape[dim + 1 :]) for dim, (start, _) in enumerate(box)),
        count=box_size(box[:axis]),
        length=box_size(box[axis:]),
        stride=prod(shape[axis:]),
    )


def plan_weights(
    config: ModelConfig, stage: StageSlice, shard: TensorShard, dtype: str, checkpoint: Checkpoint | None = None
) -> WeightPlan:
    """Plan of one rank. Without a checkpoint (a bare config) the experts are planned as fused."""
    builder = _Builder(config, shard, dtype, checkpoint)
    parameters = [p for layer in stage.layers for p in builder.layer(layer)]
    if stage.is_first:
        parameters.insert(0, builder.vocabulary("embed_tokens.weight", EMBEDDING))
    if stage.is_last:
        # On a single stage a tied head is the embedding's parameter; on a last stage of several it is a copy.
        if not (config.tie_word_embeddings and stage.is_first):
            source = EMBEDDING if config.tie_word_embeddings else HEAD
            parameters.append(builder.vocabulary("lm_head.weight", source))
        parameters.append(builder.whole("norm.weight", FINAL_NORM, (config.hidden_size,)))
    return WeightPlan(stage, shard, tuple(parameters))


class _Builder:
    """Builds the local parameters of one tensor rank. Its methods are named like the layers."""

    def __init__(self, config: ModelConfig, shard: TensorShard, dtype: str, checkpoint: Checkpoint | None) -> None:
        self.config, self.shard, self.dtype, self.checkpoint = config, shard, dtype, checkpoint
        self.shapes = LayerShapes.of(config, shard)

    def layer(self, layer: int) -> Iterator[LocalParameter]:
        hidden = (self.config.hidden_size,)
        prefix = f"layers.{layer}."
        yield self.whole(prefix + "input_layernorm.weight", prefix + "input_layernorm.weight", hidden)
        yield from self.attention(layer) if self.config.layer_types[layer] == FULL else self.linear_attention(layer)
        name = prefix + "post_attention_layernorm.weight"
        yield self.whole(name, name, hidden)
        yield from self.moe(layer)

    def attention(self, layer: int) -> Iterator[LocalParameter]:
        config, prefix = self.config, f"layers.{layer}.self_attn."
        dim = config.head_dim
        q_heads, kv_rows = self.shapes.q_heads, _scaled(self.shapes.kv_heads, dim)
        rows = [
            (prefix + "q_proj.weight", _scaled(q_heads, 2 * dim)),  # per head: query rows, then gate rows
            (prefix + "k_proj.weight", kv_rows),
            (prefix + "v_proj.weight", kv_rows),
        ]
        yield self.stacked(prefix + "qkv_proj.weight", rows, config.hidden_size)
        yield self.whole(prefix + "q_norm.weight", prefix + "q_norm.weight", (dim,))
        yield self.whole(prefix + "k_norm.weight", prefix + "k_norm.weight", (dim,))
        yield self.columns(prefix + "o_proj.weight", config.hidden_size, _scaled(q_heads, dim))

    def linear_attention(self, layer: int) -> Iterator[LocalParameter]:
        config, prefix = self.config, f"layers.{layer}.linear_attn."
        v_heads = self.shapes.value_heads
        k_rows = _scaled(self.shapes.key_heads, config.linear_key_head_dim)
        v_rows = _scaled(v_heads, config.linear_value_head_dim)
        qkv = [k_rows, _shifted(k_rows, config.key_dim), _shifted(v_rows, 2 * config.key_dim)]
        projection = [(prefix + "in_proj_qkv.weight", rows) for rows in qkv]
        projection += [(prefix + "in_proj_z.weight", v_rows)]
        projection += [(prefix + f"in_proj_{name}.weight", v_heads) for name in ("b", "a")]
        yield self.stacked(prefix + "in_proj.weight", projection, config.hidden_size)
        yield self.convolution(prefix + "conv1d.weight", qkv)
        for name in ("A_log", "dt_bias"):
            yield self.whole(prefix + name, prefix + name, (length(v_heads),), (v_heads,), dtype="float32")
        norm = prefix + "norm.weight"
        yield self.whole(norm, norm, (config.linear_value_head_dim,), dtype="float32")
        yield self.columns(prefix + "out_proj.weight", config.hidden_size, v_rows)

    def moe(self, layer: int) -> Iterator[LocalParameter]:
        config, prefix = self.config, f"layers.{layer}.mlp."
        hidden = config.hidden_size
        router = [(prefix + "gate.weight", (0, config.num_experts)), (prefix + "shared_expert_gate.weight", (0, 1))]
        yield self.stacked(prefix + "router.weight", router, hidden)
        shared = self.shapes.shared_inner
        gate_up = [(prefix + f"shared_expert.{name}_proj.weight", shared) for name in ("gate", "up")]
        yield self.stacked(prefix + "shared_expert.gate_up_proj.weight", gate_up, hidden)
        yield self.columns(prefix + "shared_expert.down_proj.weight", hidden, shared)
        yield from self.experts(layer)

    def experts(self, layer: int) -> Iterator[LocalParameter]:
        """All routed experts, stacked: gate rows above up rows, and the down projection; this rank's inner width."""
        hidden, experts, local = self.config.hidden_size, self.config.num_experts, length(self.shapes.expert_inner)
        shapes = {"gate_up_proj": (experts, 2 * local, hidden), "down_proj": (experts, hidden, local)}
        for projection, shape in shapes.items():
            fused = self.checkpoint is None or self.checkpoint.has_fused(layer, projection)
            pieces = self.fused_pieces(layer, projection) if fused else self.single_pieces(layer, projection)
            yield LocalParameter(f"layers.{layer}.mlp.experts.{projection}", shape, self.dtype, tuple(pieces))

    def fused_pieces(self, layer: int, projection: str) -> Iterator[Piece]:
        """From [E, 2I, H] (gate rows first) or [E, H, I]."""
        name, inner = fused_expert_name(layer, projection), self.shapes.expert_inner
        experts, hidden = (0, self.config.num_experts), (0, self.config.hidden_size)
        if projection == "down_proj":
            yield Piece(name, (experts, hidden, inner), (experts, hidden, (0, length(inner))))
        elif self.shard.size == 1:  # one contiguous piece
            rows = (0, 2 * self.config.moe_intermediate_size)
            yield Piece(name, (experts, rows, hidden), (experts, rows, hidden))
        else:
            for half in range(2):
                source = _shifted(inner, half * self.config.moe_intermediate_size)
                yield Piece(name, (experts, source, hidden), (experts, _half(inner, half), hidden))

    def single_pieces(self, layer: int, projection: str) -> Iterator[Piece]:
        """From each expert's own tensors: gate and up apart."""
        hidden, inner = (0, self.config.hidden_size), self.shapes.expert_inner
        for expert in range(self.config.num_experts):
            here = (expert, expert + 1)
            for half, part in enumerate(per_expert_projections(projection)):
                name = expert_name(layer, expert, part)
                if part == "down_proj":
                    yield Piece(name, (hidden, inner), (here, hidden, (0, length(inner))))
                else:
                    yield Piece(name, (inner, hidden), (here, _half(inner, half), hidden))

    def vocabulary(self, name: str, source: str) -> LocalParameter:
        """This rank's rows of the embedding or of the head."""
        rows = self.shapes.vocabulary
        return self.stacked(name, [(source, rows)], self.config.hidden_size)

    def whole(
        self, name: str, source: str, shape: tuple[int, ...], box: Box | None = None, dtype: str | None = None
    ) -> LocalParameter:
        """One tensor, in whole or (``box``) in part."""
        target = tuple((0, n) for n in shape)
        return LocalParameter(name, shape, dtype or self.dtype, (Piece(source, box or target, target),))

    def columns(self, name: str, num_rows: int, columns: Range) -> LocalParameter:
        """A row-parallel weight [num_rows, columns]: its input columns are split."""
        rows, width = (0, num_rows), length(columns)
        return LocalParameter(name, (num_rows, width), self.dtype, (Piece(name, (rows, columns), (rows, (0, width))),))

    def stacked(self, name: str, parts: list[tuple[str, Range]], num_columns: int) -> LocalParameter:
        """Rows of several tensors, one after the other, so that one GEMM does the work of several."""
        columns, pieces, row = (0, num_columns), [], 0
        for source, rows in parts:
            pieces.append(Piece(source, (rows, columns), ((row, row + length(rows)), columns)))
            row += length(rows)
        return LocalParameter(name, (row, num_columns), self.dtype, tuple(pieces))

    def convolution(self, name: str, parts: list[Range]) -> LocalParameter:
        """Channels of the depthwise convolution, [C, 1, K] on disk and [C, K] here."""
        taps, pieces, row = (0, self.config.linear_conv_kernel_dim), [], 0
        for rows in parts:
            pieces.append(Piece(name, (rows, (0, 1), taps), ((row, row + length(rows)), taps)))
            row += length(rows)
        return LocalParameter(name, (row, taps[1]), self.dtype, tuple(pieces))


def _scaled(range_: Range, factor: int) -> Range:
    return range_[0] * factor, range_[1] * factor


def _shifted(range_: Range, by: int) -> Range:
    return range_[0] + by, range_[1] + by


def _half(inner: Range, half: int) -> Range:
    return half * length(inner), (half + 1) * length(inner)


class AuditError(AssertionError):
    """Plans or loaded weights are not complete: a bug of ours, found before serving."""


def audit_plan(plan: WeightPlan) -> None:
    """Every local parameter is filled exactly once: its pieces are disjoint and add up to its size."""
    for parameter in plan.parameters:
        if _disjoint_volume([piece.target for piece in parameter.pieces], parameter.shape) != prod(parameter.shape):
            raise AuditError(f"{plan.position}: parameter {parameter.name} is not filled exactly once")
        for piece in parameter.pieces:
            if box_size(piece.source) != box_size(piece.target):
                raise AuditError(
                    f"{plan.position}: parameter {parameter.name}: tensor …{piece.tensor} gives too little or too much"
                )


def audit_union(plans: Iterable[WeightPlan], checkpoint: Checkpoint) -> None:
    """The plans of all ranks together cover every element of every tensor of the checkpoint."""
    boxes: dict[str, set[Box]] = defaultdict(set)
    for plan in plans:
        for parameter in plan.parameters:
            for piece in parameter.pieces:
                boxes[piece.tensor].add(piece.source)
    for name, entry in checkpoint.tensors.items():
        covered = _disjoint_volume(list(boxes.get(name, ())), entry.shape)
        if covered != prod(entry.shape):
            raise AuditError(f"{entry.file}: tensor {entry.name!r}: {covered} of {prod(entry.shape)} elements planned")


def _disjoint_volume(boxes: list[Box], shape: tuple[int, ...]) -> int:
    """Elements of all boxes; -1 if one is not inside ``shape`` or two overlap.

    Sweeps along the first dimension: a box is compared with the boxes before it that reach beyond its start.
    """
    reaching: list[Box] = []
    for box in sorted(boxes):
        if len(box) != len(shape) or any(not 0 <= a <= b <= size for (a, b), size in zip(box, shape, strict=True)):
            return -1
        reaching = [other for other in reaching if other[0][1] > box[0][0]]
        if any(_overlap(box, other) for other in reaching):
            return -1
        reaching.append(box)
    return sum(box_size(box) for box in boxes)


def _overlap(one: Box, other: Box) -> bool:
    return all(
        a_start < b_stop and b_start < a_stop for (a_start, a_stop), (b_start, b_stop) in zip(one, other, strict=True)
    )
