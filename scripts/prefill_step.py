"""One prefill step of Qwen3.5-35B-A3B on one GPU with dummy weights, made of the kernels that a rank launches.

Each part is a function without arguments; ``Step.layers`` calls them in a layer's order. Three sets of weights take
turns, each larger than the L2. Scheduler, embedding and head are not in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from splitrank.models.layer_shapes import pending_shape
from splitrank.models.ops.gpu.attention_chunk import attention_chunk, prepare_attention
from splitrank.models.ops.gpu.conv_chunk import conv_chunk
from splitrank.models.ops.gpu.delta_chunk import delta_chunk, solve_blocks
from splitrank.models.ops.gpu.dense import shared_activation
from splitrank.models.ops.gpu.norm import add_norm, gated_norm
from splitrank.models.ops.gpu.projection import project
from splitrank.models.ops.gpu.sequences import place
from splitrank.models.ops.gpu.sort_pairs import sort_pairs
from splitrank.models.ops.gpu.sorted_experts import sorted_down, sorted_up
from splitrank.models.ops.gpu.tiles import Tile, TileTable
from splitrank.models.rounding import pages_needed

HIDDEN, INNER, EXPERTS, TOP_K = 2048, 512, 256, 8
HEADS, KV_HEADS, HEAD_DIM, ROTARY = 16, 2, 256, 64
KEY_HEADS, VALUE_HEADS, DELTA_DIM, TAPS = 16, 32, 128, 4
CHANNELS, VALUES = (2 * KEY_HEADS + VALUE_HEADS) * DELTA_DIM, VALUE_HEADS * DELTA_DIM
IN_PROJ, QKV_PROJ = CHANNELS + VALUES + 2 * VALUE_HEADS, 2 * (HEADS + KV_HEADS) * HEAD_DIM
ROUTER = 1296  # experts, the shared one's gate, its gate and up rows, 15 rows of padding
PAGE = 64
SETS = 3
EPS = 1e-6
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Part:
    """One or a few launches of a layer; what they must compute and move at the least."""

    run: Callable[[], object]
    calls: int  # of them in 40 layers
    flops: float
    num_bytes: float


class Step:
    """``count`` sequences of ``length`` new prompts; ``self.layer`` chooses the set of weights."""

    def __init__(self, count: int, length: int, tiles: TileTable, device: torch.device, shards: int = 1) -> None:
        self.rows, self.device, self.shards = count * length, device, shards
        pages = pages_needed(length, PAGE)
        tables = [list(range(n * pages, (n + 1) * pages)) for n in range(count)]
        self.sequences = place([length] * count, [0] * count, list(range(count)), tables, device)
        self.tiles: dict[str, Tile] = {name: tiles.tile(name, self.rows) for name in PREFILL_LAUNCHES}
        self.layer = 0
        self._make_weights()
        self._make_states(count, count * pages)
        self._make_rows(length, count)

    def _normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = DTYPE) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(0, scale)

    def _sets(self, rows: int, columns: int, *before: int) -> list[torch.Tensor]:
        return [self._normal(*before, rows, columns, scale=0.5 * columns**-0.5) for _ in range(SETS)]

    def _make_weights(self) -> None:
        self.in_proj, self.qkv_proj = self._sets(IN_PROJ, HIDDEN), self._sets(QKV_PROJ, HIDDEN)
        self.out_proj, self.o_proj = self._sets(HIDDEN, VALUES), self._sets(HIDDEN, HEADS * HEAD_DIM)
        self.router, self.shared_down = self._sets(ROUTER, HIDDEN), self._sets(HIDDEN, INNER)
        self.gate_up, self.down = self._sets(2 * INNER, HIDDEN, EXPERTS), self._sets(HIDDEN, INNER, EXPERTS)
        self.norm, self.head_norm = self._normal(HIDDEN, scale=0.1), self._normal(2, HEAD_DIM, scale=0.1)
        self.taps = self._normal(TAPS, CHANNELS, scale=0.5, dtype=torch.float32)
        self.decay_rate = -self._normal(VALUE_HEADS, dtype=torch.float32).abs()
        self.dt_bias = self._normal(VALUE_HEADS, dtype=torch.float32)
        self.gated_norm = self._normal(DELTA_DIM, dtype=torch.float32)

    def _make_states(self, slots: int, pages: int) -> None:
        self.ring = self._normal(slots, TAPS, CHANNELS)
        self.delta_states = self._normal(slots, VALUE_HEADS, DELTA_DIM, DELTA_DIM, dtype=torch.float32)
        pending = pending_shape(KEY_HEADS, DELTA_DIM, VALUE_HEADS, DELTA_DIM)
        self.pending = self._normal(slots, *pending, dtype=torch.float32)
        self.keys, self.values = (self._normal(pages, PAGE, KV_HEADS, HEAD_DIM) for _ in range(2))

    def _make_rows(self, length: int, count: int) -> None:
        """What one part leaves for the next; random, so that each can be timed alone."""
        positions = torch.arange(length, device=self.device).repeat(count)
        angles = positions[:, None] * 1e7 ** (-torch.arange(ROTARY // 2, device=self.device) / (ROTARY // 2))
        self.cos, self.sin = angles.cos(), angles.sin()
        self.residual, self.normed = self._normal(self.rows, HIDDEN), self._normal(self.rows, HIDDEN)
        self.hidden = self._normal(self.rows, self.shards, HIDDEN)
        self.delta_in, self.qkv = self._normal(self.rows, IN_PROJ), self._normal(self.rows, QKV_PROJ)
        self.side = self._normal(self.rows, ROUTER)
        self.parts_out = self._normal(self.rows, self.shards * (TOP_K + 1), HIDDEN, scale=0.1)
        self.gated = self._normal(self.rows, VALUES)
        self.convolve()
        self.solve()
        self.walk()
        self.prepare()
        self.attend()
        self.sort()
        self.up()
        self.activate()

    # ------------------------------------------------------------ the parts

    def _project(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        project(x, weight, out, self.tiles["prompt_proj"])

    def project_in(self) -> None:
        self._project(self.normed, self.in_proj[self.layer % SETS], self.delta_in)

    def convolve(self) -> None:
        self.inputs = conv_chunk(
            self.delta_in,
            self.taps,
            self.decay_rate,
            self.dt_bias,
            self.ring,
            self.sequences,
            KEY_HEADS,
            self.tiles["conv_chunk"],
        )

    def solve(self) -> None:
        q, k, _, log_decay, beta = self.inputs
        self.solved = solve_blocks(q, k, log_decay, beta, self.sequences, self.tiles["solve_blocks"])

    def walk(self) -> None:
        q, k, v, *_ = self.inputs
        states = self.delta_states, self.pending
        self.mixed = delta_chunk(q, k, v, self.solved, *states, self.sequences, self.tiles["delta_chunk"])

    def norm_heads(self) -> None:
        gate, out = self.delta_in[:, CHANNELS : CHANNELS + VALUES], self.gated.view_as(self.mixed)
        gated_norm(self.mixed, gate, self.gated_norm, out, EPS, self.tiles["gated_norm"])

    def project_out(self) -> None:
        self._project(self.gated, self.out_proj[self.layer % SETS], self.hidden.squeeze(1))

    def project_qkv(self) -> None:
        self._project(self.normed, self.qkv_proj[self.layer % SETS], self.qkv)

    def prepare(self) -> None:
        prepare_attention(
            self.qkv,
            self.head_norm[0],
            self.head_norm[1],
            EPS,
            self.cos,
            self.sin,
            self.keys,
            self.values,
            self.sequences,
            self.tiles["prepare_attention"],
        )

    def attend(self) -> None:
        self.attended = attention_chunk(self.qkv, self.keys, self.values, self.sequences, self.tiles["attention_chunk"])

    def project_o(self) -> None:
        self._project(self.attended, self.o_proj[self.layer % SETS], self.hidden.squeeze(1))

    def norm_mixed(self) -> None:
        add_norm(
            self.residual, self.hidden, self.norm, self.residual, self.normed, EPS, self.tiles["add_norm"], self.shards
        )

    def route(self) -> None:
        self._project(self.normed, self.router[self.layer % SETS], self.side)

    def sort(self) -> None:
        self.pairs = sort_pairs(self.side[:, :EXPERTS], TOP_K, self.tiles["sort_pairs"])

    def up(self) -> None:
        self.act = sorted_up(self.normed, self.gate_up[self.layer % SETS], self.pairs, self.tiles["sorted_up"])

    def down_(self) -> None:
        down, tile = self.down[self.layer % SETS], self.tiles["sorted_down"]
        sorted_down(self.act, down, self.pairs, self.parts_out, tile, self.shards)

    def activate(self) -> None:
        gate_up, gate = self.side[:, EXPERTS + 1 : EXPERTS + 1 + 2 * INNER], self.side[:, EXPERTS]
        self.shared = shared_activation(gate_up, gate, self.tiles["shared_activation"])

    def share(self) -> None:
        self._project(
            self.shared, self.shared_down[self.layer % SETS], self.parts_out[:, TOP_K :: TOP_K + 1].squeeze(1)
        )

    def norm_experts(self) -> None:
        add_norm(
            self.residual,
            self.parts_out,
            self.norm,
            self.residual,
            self.normed,
            EPS,
            self.tiles["add_norm"],
            self.shards,
        )

    # ------------------------------------------------------------ the step

    def layers(self, number: int = 40) -> None:
        """All parts of ``number`` layers, every fourth of full attention."""
        for self.layer in range(number):
            names = ATTENTION if self.layer % 4 == 3 else DELTA
            for name in (*names, *MLP):
                getattr(self, name)()
        self.layer = 0

    def table(self) -> dict[str, Part]:
        """Every part with its number of calls and its work."""
        rows, delta, attention = self.rows, 30, 10
        pairs = rows * TOP_K
        length = rows // self.sequences.num_sequences

        def dense(run: Callable[[], object], calls: int, n: int, k: int) -> Part:
            return Part(run, calls, 2.0 * rows * n * k, 2.0 * (rows * (n + k) + n * k))

        def moved(run: Callable[[], object], calls: int, elements: float, flops: float = 0.0) -> Part:
            return Part(run, calls, flops, 2.0 * elements)

        square = self.sequences.num_blocks * VALUE_HEADS * 64.0
        rule = rows * VALUE_HEADS * 2.0 * DELTA_DIM
        return {
            "in_proj": dense(self.project_in, delta, IN_PROJ, HIDDEN),
            "conv_chunk": moved(self.convolve, delta, 2.0 * rows * CHANNELS),
            "solve_blocks": moved(
                self.solve, delta, 2.0 * rows * KEY_HEADS * DELTA_DIM + 2 * square * 64, square * 64 * 64 * 2 * 12
            ),
            "delta_chunk": moved(
                self.walk,
                delta,
                rows * (2.0 * KEY_HEADS + 2 * VALUE_HEADS) * DELTA_DIM + 2 * square * 64,
                rule * (3 * DELTA_DIM + 2 * 64),
            ),
            "gated_norm": moved(self.norm_heads, delta, 3.0 * rows * VALUES),
            "out_proj": dense(self.project_out, delta, HIDDEN, VALUES),
            "qkv_proj": dense(self.project_qkv, attention, QKV_PROJ, HIDDEN),
            "prepare_attention": moved(self.prepare, attention, rows * HEAD_DIM * (2.0 * HEADS + 4 * KV_HEADS)),
            "attention_chunk": moved(
                self.attend,
                attention,
                rows * HEAD_DIM * (3.0 * HEADS + 2 * KV_HEADS),
                2.0 * rows * length * HEADS * HEAD_DIM,
            ),
            "o_proj": dense(self.project_o, attention, HIDDEN, HEADS * HEAD_DIM),
            "add_norm": moved(self.norm_mixed, 40, 4.0 * rows * HIDDEN),
            "router": dense(self.route, 40, ROUTER, HIDDEN),
            "sort_pairs": moved(self.sort, 40, rows * EXPERTS + 5.0 * pairs),
            "sorted_up": moved(
                self.up,
                40,
                rows * HIDDEN + 2.0 * EXPERTS * INNER * HIDDEN + pairs * INNER,
                4.0 * pairs * INNER * HIDDEN,
            ),
            "sorted_down": moved(
                self.down_,
                40,
                pairs * (INNER + HIDDEN) + 1.0 * EXPERTS * INNER * HIDDEN,
                2.0 * pairs * INNER * HIDDEN,
            ),
            "shared_activation": moved(self.activate, 40, 3.0 * rows * INNER),
            "shared_down": dense(self.share, 40, HIDDEN, INNER),
            "add_norm of experts": moved(self.norm_experts, 40, (TOP_K + 4.0) * rows * HIDDEN),
        }


DELTA = ("project_in", "convolve", "solve", "walk", "norm_heads", "project_out")
ATTENTION = ("project_qkv", "prepare", "attend", "project_o")
MLP = ("norm_mixed", "route", "sort", "up", "down_", "activate", "share", "norm_experts")
PREFILL_LAUNCHES = (
    "conv_chunk",
    "solve_blocks",
    "delta_chunk",
    "gated_norm",
    "prepare_attention",
    "attention_chunk",
    "add_norm",
    "sort_pairs",
    "sorted_up",
    "sorted_down",
    "shared_activation",
    "prompt_proj",
)
