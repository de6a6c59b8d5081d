"""Steps of decode rows alone as CUDA graphs: a whole step is one launch, at a ladder of batch sizes.

A graph reads which slots it computes from one small tensor; it gathers lengths, tokens, pages and sampling parameters
from the tables by itself. Rows up to its size are padding: they lie in the table's scratch slot, behind ``num_live``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch

from splitrank.models.hidden_states import HiddenStates
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.rows import advance_rows, gather_rows
from splitrank.serving.rank.request_table import RequestTable

LADDER = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_HEADER = 4  # numbers before the slots: how many rows are live, and padding to 16 bytes
_STAGED = 32  # more than steps are ever in flight


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves on the device. Of a graph: overwritten by its next launch, and padded behind the live rows."""

    states: HiddenStates | None = None  # for the next stage
    logits: torch.Tensor | None = None  # [S, vocab] on the last stage, unless every row takes its likeliest token
    tokens: torch.Tensor | None = None  # [S] int32, on ranks that draw, with each row's largest logit
    largest: torch.Tensor | None = None


class Compute(Protocol):
    """The stage, and on the last one the draw. ``greedy``: every row takes its likeliest token."""

    def __call__(
        self, batch: GpuBatch, states: HiddenStates | None, slots: torch.Tensor, num_live: torch.Tensor, greedy: bool
    ) -> StepOutput: ...


class DecodeStep:
    """A step of ``size`` rows, computed from tensors that stay where they are."""

    def __init__(self, size: int, table: RequestTable, inputs: HiddenStates | None) -> None:
        device, width = table.device, table.pages.shape[1]
        self.size, self._table, self.inputs = size, table, inputs
        self.numbers = torch.full((_HEADER + size,), table.scratch_slot, dtype=torch.int32, device=device)
        self.numbers[:_HEADER] = 0
        self._positions = torch.zeros(size, dtype=torch.int32, device=device)
        self._tables = torch.zeros((size, width), dtype=torch.int32, device=device)
        self._last_token = torch.full((size,), -1, dtype=torch.int32, device=device)

    def run(self, compute: Compute, greedy: bool) -> StepOutput:
        table, num_live, slots = self._table, self.numbers[:1], self.numbers[_HEADER:]
        gather_rows(slots, table.lengths, table.pages, self._positions, self._tables)
        batch = GpuBatch(
            token_ids=self._last_token,
            slots=slots,
            positions=self._positions,
            last_tokens=table.last_tokens,
            num_live=num_live,
            num_decodes=self.size,
            decode_pages=self._tables,
        )
        output = compute(batch, self.inputs, slots, num_live, greedy)
        advance_rows(slots, table.lengths, num_live)
        return output


class DecodeGraphs:
    """One graph a size, and on the last stage one more for greedy rows; up to ``max_rows``.

    Captured when this is made, largest first, in one pool of memory.
    """

    def __init__(
        self, table: RequestTable, max_rows: int, compute: Compute, kinds: Sequence[bool], inputs: HiddenStates | None
    ) -> None:
        self._sizes, self._table = ladder(max_rows), table
        self._steps: dict[int, DecodeStep] = {}
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, StepOutput]] = {}
        self._staged = staging(_HEADER + max_rows, table.device)
        self.pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            own = inputs.first_rows(size) if inputs else None
            self._steps[size] = DecodeStep(size, table, own)
            for greedy in kinds:
                self._graphs[size, greedy] = self._capture(self._steps[size], compute, greedy, self.pool)

    @staticmethod
    def _capture(
        step: DecodeStep, compute: Compute, greedy: bool, pool: Any
    ) -> tuple[torch.cuda.CUDAGraph, StepOutput]:
        """All rows are padding."""
        return capture(lambda: step.run(compute, greedy), pool)

    def launch(self, slots: list[int], states: HiddenStates | None, greedy: bool) -> StepOutput:
        """One step of these slots."""
        count = len(slots)
        size = next(size for size in self._sizes if size >= count)
        step, (graph, output) = self._steps[size], self._graphs[size, greedy]
        staged = next(self._staged)[: _HEADER + size]
        numbers = staged.numpy()
        numbers[0], numbers[_HEADER : _HEADER + count] = count, slots
        numbers[_HEADER + count :] = self._table.scratch_slot
        step.numbers.copy_(staged, non_blocking=True)
        put_states(step.inputs, states, count)
        graph.replay()
        return output


def capture(run: Callable[[], StepOutput], pool: Any) -> tuple[torch.cuda.CUDAGraph, StepOutput]:
    """The first run compiles what was not compiled yet, which a capture may not do. ``pool``: memory of all graphs."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = run()
    return graph, output


def staging(length: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Buffers [length] int32 of the host from which a step's numbers are copied while the next step's are written."""
    pinned = device.type == "cuda"
    return cycle([torch.empty(length, dtype=torch.int32, pin_memory=pinned) for _ in range(_STAGED)])


def put_states(inputs: HiddenStates | None, states: HiddenStates | None, count: int) -> None:
    """The first ``count`` rows of what a graph reads from the stage before; nothing on the first stage."""
    if states is not None:
        assert inputs is not None
        for mine, given in zip(inputs, states, strict=True):
            mine[:count] = given


def ladder(max_rows: int) -> list[int]:
    """Sizes of graphs for up to ``max_rows`` rows; the last is ``max_rows``."""
    return [size for size in LADDER if size < max_rows] + [max_rows]
