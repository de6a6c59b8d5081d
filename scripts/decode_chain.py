"""A decode step of a whole model as a chain of the GPU kernels, with dummy weights: for bench, compile check and tests.

No engine: the verbs of a layer in their order, buffers shared by all layers, all rows decoding. On the device ``meta``
nothing is computed, and every launch still passes the border of ``launch``.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from splitrank.models.layer_shapes import STATE_PERIOD, pending_shape
from splitrank.models.ops.gpu import (
    attention_decode,
    delta_step,
    embedding,
    experts,
    experts_one,
    head,
    norm,
    projection,
    rotary,
    routing,
    sampling,
)
from splitrank.models.ops.gpu.tiles import Tile, TileTable
from splitrank.models.rounding import ceil_div

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Widths of one tensor rank; the default is Qwen3.5-35B-A3B on one."""

    hidden: int = 2048
    num_layers: int = 40
    attention_every: int = 4
    heads: int = 16
    kv_heads: int = 2
    head_dim: int = 256
    rotary_dim: int = 64
    key_heads: int = 16
    value_heads: int = 32
    key_dim: int = 128
    value_dim: int = 128
    taps: int = 4
    experts: int = 256
    top_k: int = 8
    inner: int = 512
    shared: int = 512
    vocabulary: int = 248_320

    def of_rank(self, tp: int) -> "Shape":
        """What one of ``tp`` ranks holds; fewer kv heads than ranks are replicated."""
        divided = ("heads", "key_heads", "value_heads", "inner", "shared", "vocabulary")
        local = {name: getattr(self, name) // tp for name in divided}
        return replace(self, **local, kv_heads=max(1, self.kv_heads // tp))

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def pending(self) -> tuple[int, int]:
        """Of a slot: updates that its state lacks."""
        return pending_shape(self.key_heads, self.key_dim, self.value_heads, self.value_dim)

    @property
    def in_rows(self) -> int:
        return self.channels + self.value_heads * (self.value_dim + 2)

    @property
    def qkv_rows(self) -> int:
        return 2 * (self.heads + self.kv_heads) * self.head_dim

    @property
    def router_rows(self) -> int:
        return ceil_div(self.experts + 1 + 2 * self.shared, 16) * 16

    def is_attention(self, layer: int) -> bool:
        return layer % self.attention_every == self.attention_every - 1


class Weights:
    """Random weights of ``num_layers`` layers; experts may be fewer sets than layers, where memory is short."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype, expert_sets: int) -> None:
        def weight(*sizes: int, scale: float = 0.02, kind: torch.dtype = dtype) -> torch.Tensor:
            out = torch.empty(sizes, dtype=kind, device=device)
            return out if device.type == "meta" else out.normal_(0, scale)

        s, layers = shape, range(shape.num_layers)
        self.norms = [weight(s.hidden, scale=0.1) for _ in range(2 * s.num_layers + 1)]
        self.first = [weight(s.qkv_rows if s.is_attention(i) else s.in_rows, s.hidden) for i in layers]
        mixed = [s.heads * s.head_dim if s.is_attention(i) else s.value_heads * s.value_dim for i in layers]
        self.second = [weight(s.hidden, width) for width in mixed]
        self.router = [weight(s.router_rows, s.hidden) for _ in layers]
        self.gate_up = [weight(s.experts, 2 * s.inner, s.hidden) for _ in range(expert_sets)]
        self.down = [weight(s.experts, s.hidden, s.inner) for _ in range(expert_sets)]
        self.shared_down = [weight(s.hidden, s.shared) for _ in layers]
        self.taps = weight(s.taps, s.channels, scale=0.3)
        self.decay_rate = -weight(s.value_heads, kind=torch.float32, scale=1.0).exp()
        self.dt_bias = weight(s.value_heads, kind=torch.float32, scale=1.0)
        self.gated_norm = weight(s.value_dim, kind=torch.float32, scale=1.0)
        self.q_norm, self.k_norm = weight(s.head_dim, scale=0.1), weight(s.head_dim, scale=0.1)
        self.embedding = weight(s.vocabulary, s.hidden, scale=1.0)
        self.head = weight(s.vocabulary, s.hidden)


class State:
    """Recurrent slots and pages of all layers for ``rows`` sequences of about one context, filled with noise.

    The positions are those of eight steps, so that a step has its share of rows that write their states.
    """

    def __init__(
        self, shape: Shape, rows: int, context: int, page: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def noise(*sizes: int, kind: torch.dtype = dtype) -> torch.Tensor:
            out = torch.empty(sizes, dtype=kind, device=device)
            return out if device.type == "meta" else out.normal_(0, 0.1)

        s, pages = shape, context // page + 1
        attention = sum(map(s.is_attention, range(s.num_layers)))
        delta = s.num_layers - attention
        self.rings = [noise(rows, s.taps, s.channels) for _ in range(delta)]
        heads = (rows, s.value_heads, s.key_dim, s.value_dim)
        self.states = [noise(*heads, kind=torch.float32) for _ in range(delta)]
        cache = (rows * pages, page, s.kv_heads, s.head_dim)
        self.keys, self.values = ([noise(*cache) for _ in range(attention)] for _ in range(2))
        self.slots = torch.arange(rows, dtype=torch.int32, device=device)
        self.pendings = [noise(rows, *s.pending, kind=torch.float32) for _ in range(delta)]
        every = torch.arange(rows, dtype=torch.int32, device=device)
        self.positions = (context - (every + 5) % STATE_PERIOD).clamp(min=0)
        self.tables = torch.arange(rows * pages, dtype=torch.int32, device=device).view(rows, pages)


class Sampling:
    """The sampler's launches for ``rows`` rows with these parameters."""

    def __init__(
        self, shape: Shape, rows: int, device: torch.device, temperature: float, top_k: int, top_p: float
    ) -> None:
        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        self.logits = torch.empty((rows, shape.vocabulary), dtype=torch.bfloat16, device=device)
        if device.type != "meta":
            self.logits.normal_(0, 2)
        numbers = torch.arange(rows, dtype=torch.int64, device=device)
        filters = full(temperature, torch.float32), full(top_k, torch.int32), full(top_p, torch.float64)
        self.params = sampling.SamplingRows(*filters, full(0.0, torch.float32), numbers, numbers)
        self.memory = sampling.sampling_memory(rows, shape.vocabulary, device)
        self.tokens, self.largest = full(0, torch.int32), full(0.0, torch.float32)

    def __call__(self) -> None:
        sampling.sample(self.logits, self.params, self.memory, self.tokens, self.largest, Tile(8, pdl=True))


class Step:
    """One decode step of ``rows`` rows: call it inside a graph. ``leave_out``: launches that are skipped, by name."""

    def __init__(
        self, shape: Shape, weights: Weights, state: State, rows: int, table: TileTable, shards: int = 1
    ) -> None:
        device, dtype = weights.head.device, weights.head.dtype
        self.shape, self.weights, self.state, self.rows = shape, weights, state, rows
        self.tiles: dict[str, Tile] = {name: table.tile(name, rows) for name in table.ranges}
        self.shards = shards  # of a row-parallel sum, in the exact mode
        s, parts = shape, 1 if self.one_row else shards * (shape.top_k + 1)

        def empty(*sizes: int, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.zeros(sizes, dtype=kind, device=device)

        self.residual = [empty(rows, s.hidden) for _ in range(2)]
        self.embedded, self.hidden = empty(rows, 1, s.hidden), empty(rows, parts, s.hidden)
        self.mixed_out, self.normed = empty(rows, shards, s.hidden), empty(rows, s.hidden)
        self.in_projected, self.qkv = empty(rows, s.in_rows), empty(rows, s.qkv_rows)
        self.delta = [empty(rows, s.value_heads, s.value_dim) for _ in range(2)]
        self.attended, self.rotations = empty(rows, s.heads, s.head_dim), empty(rows, s.rotary_dim)
        frequencies = 1.0 / 1e7 ** (torch.arange(0, s.rotary_dim, 2, device=device) / s.rotary_dim)
        self.frequencies = frequencies.float()
        self.memory = attention_decode.split_memory(rows, s.heads, s.kv_heads, s.head_dim, device)
        self.block_t = self.tiles["route"]["t"]
        self.routing = routing.empty_routing(rows, s.experts, s.top_k, self.block_t, device)
        self.logits = empty(rows, s.router_rows)
        self.act = empty(rows * (s.top_k + 1), max(s.inner, s.shared))
        self.num_live = torch.full((1,), rows, dtype=torch.int32, device=device)
        blocks = head.argmax_blocks(s.vocabulary, self.tiles["head"])
        self.best, self.best_at = (empty(rows, blocks, kind=kind) for kind in (torch.float32, torch.int32))
        self.values, self.tokens = empty(rows, kind=torch.float32), empty(rows, kind=torch.int32)
        # The same tokens in every step, different ones in the rows: equal rows would choose equal experts.
        ids = torch.arange(rows, device=device) * 7919 % s.vocabulary
        self.token_ids = ids.int()
        self.slots, self.positions = state.slots[:rows], state.positions[:rows]
        self.experts_touched: list[int] | None = None  # a list here is filled layer by layer, outside of a graph

    @property
    def one_row(self) -> bool:
        return self.tiles["experts_up"].form == "fma"

    def __call__(self, leave_out: frozenset[str] = frozenset()) -> None:
        w, norm_tile = self.weights, self.tiles["add_norm"]
        embedding.embed(self.token_ids, self.slots, self.tokens, w.embedding, 0, self.embedded.squeeze(1), norm_tile)
        rotary.cos_sin(self.positions, self.frequencies, 1.0, self.rotations, norm_tile)
        residual, spare = self.residual
        parts, attention, delta = self.embedded, 0, 0
        for layer in range(self.shape.num_layers):
            if self.shape.is_attention(layer):
                self._attention(layer, attention, residual, parts, spare, leave_out)
                attention += 1
            else:
                self._delta(layer, delta, residual, parts, spare, leave_out)
                delta += 1
            self._experts(layer, spare, residual, leave_out)
            parts = self.hidden
        norm.add_norm(residual, parts, w.norms[-1], spare, self.normed, EPS, norm_tile, self.shards)
        scratch = self.best, self.best_at, self.values, self.tokens
        if "head" not in leave_out:
            head.head_argmax(self.normed, w.head, 0, *scratch, self.tiles["head"])

    def _norm_project(
        self, name: str, index: int, residual: torch.Tensor, parts: torch.Tensor, spare: torch.Tensor, *out: Any
    ) -> None:
        """residual + parts -> ``spare``, its norm -> ``normed``, and the projection; one launch where it may."""
        weight, projected, leave_out = out
        tile, norm_weight = self.tiles[name], self.weights.norms[index]
        if tile.form == "fma" and self.rows == 1:
            if name not in leave_out:
                rest = projected, spare, self.normed, EPS, tile
                projection.add_norm_project(residual, parts, norm_weight, weight, *rest)
            return
        if "add_norm" not in leave_out:
            shards = 1 if parts.shape[1] == 1 else self.shards
            norm.add_norm(residual, parts, norm_weight, spare, self.normed, EPS, self.tiles["add_norm"], shards)
        if name not in leave_out:
            projection.project(self.normed, weight, projected, tile)

    def _delta(
        self, layer: int, index: int, residual: torch.Tensor, parts: torch.Tensor, spare: torch.Tensor, leave_out: Any
    ) -> None:
        s, w, tiles = self.shape, self.weights, self.tiles
        out = w.first[layer], self.in_projected, leave_out
        self._norm_project("in_proj", 2 * layer, residual, parts, spare, *out)
        mixed, normed = self.delta
        constants = w.taps, w.decay_rate, w.dt_bias
        where = self.state.states[index], self.state.pendings[index], self.slots, self.positions
        if "delta_step" not in leave_out:
            arguments = self.in_projected, self.state.rings[index], *constants, *where, mixed
            delta_step.delta_step(*arguments, tiles["delta_step"], tiles["delta_inputs"])
        gate = self.in_projected[:, s.channels : s.channels + s.value_heads * s.value_dim]
        out_tile, hidden = tiles["out_proj"], self.mixed_out.squeeze(1)
        if out_tile.form == "fma" and self.rows == 1:
            if "out_proj" not in leave_out:
                projection.gated_norm_project(mixed, gate, w.gated_norm, w.second[layer], hidden, EPS, out_tile)
            return
        if "gated_norm" not in leave_out:
            norm.gated_norm(mixed, gate, w.gated_norm, normed, EPS, tiles["gated_norm"])
        if "out_proj" not in leave_out:
            projection.project(normed.flatten(1), w.second[layer], hidden, out_tile)

    def _attention(
        self, layer: int, index: int, residual: torch.Tensor, parts: torch.Tensor, spare: torch.Tensor, leave_out: Any
    ) -> None:
        w, state = self.weights, self.state
        self._norm_project("qkv_proj", 2 * layer, residual, parts, spare, w.first[layer], self.qkv, leave_out)
        pages = state.keys[index], state.values[index], state.tables[: self.rows]
        if "attention_decode" not in leave_out:
            attention_decode.attention_decode(
                self.qkv, w.q_norm, w.k_norm, self.rotations, *pages, self.positions, self.memory, self.attended,
                EPS, self.tiles["attention_decode"],
            )  # fmt: skip
        if "o_proj" not in leave_out:
            tile = self.tiles["o_proj"]
            projection.project(self.attended.flatten(1), w.second[layer], self.mixed_out.squeeze(1), tile)

    def _experts(self, layer: int, residual: torch.Tensor, spare: torch.Tensor, leave_out: Any) -> None:
        s, w, tiles = self.shape, self.weights, self.tiles
        out = w.router[layer], self.logits, leave_out
        self._norm_project("router", 2 * layer + 1, residual, self.mixed_out, spare, *out)
        gate_up, down = (weights[layer % len(weights)] for weights in (w.gate_up, w.down))
        up = self.logits, self.normed, gate_up, s.shared, self.routing, self.act, tiles["experts_up"]
        if self.one_row:
            if "experts_up" not in leave_out:
                experts_one.experts_up_one(*up)
            if "experts_down" not in leave_out:
                rest = self.routing, self.hidden.squeeze(1), tiles["experts_down"]
                experts_one.experts_down_one(self.act, down, w.shared_down[layer], *rest)
            return
        if "route" not in leave_out:
            routing.route(self.logits, self.num_live, s.experts, self.routing, tiles["route"])
        if self.experts_touched is not None:
            used = set(self.routing.tiles[0].tolist())
            self.experts_touched.append(len(used - {s.experts, -1}))
        if "experts_up" not in leave_out:
            experts.experts_up(*up, self.block_t)
        if "experts_down" not in leave_out:
            rest = self.routing, self.hidden, tiles["experts_down"]
            experts.experts_down(self.act, down, w.shared_down[layer], *rest, self.block_t, self.shards)
