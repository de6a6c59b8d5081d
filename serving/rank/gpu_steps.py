"""Steps of a GPU: launched without waiting for the one before. Sampled tokens stay on the device for the next step.

Steps of decode rows alone run as CUDA graphs (``decode_graphs.py``), and so do steps of one short prompt
(``prompt_graphs.py``); all others are launched kernel by kernel. A row whose logits the host changes (penalties, bias,
bans) or reports (logprobs) is sampled by the host, and only that row.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from splitrank.comm.collectives import Collectives
from splitrank.models.cache import StageCache
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.launch import INTERPRETED
from splitrank.models.ops.gpu.operations import GpuOperations
from splitrank.models.ops.gpu.rows import advance_rows, gather_sampling, keep_tokens
from splitrank.models.ops.gpu.sampling import SamplingMemory, SamplingRows, sample, sampling_memory
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.qwen3_5 import Stage
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.rank.decode_graphs import DecodeGraphs, DecodeStep, StepOutput
from splitrank.serving.rank.device_writes import DeviceWrites
from splitrank.serving.rank.gpu_batch_builder import PlannedGpuBatch, make_gpu_batch
from splitrank.serving.rank.prompt_graphs import PromptGraphs, PromptRows, PromptStep
from splitrank.serving.rank.prompt_logprobs import score_prompts
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.sampler import SampledRow, bad_numbers, row_digest
from splitrank.serving.rank.sampler import sample as sample_on_host
from splitrank.serving.rank.sampling_state import SamplingState

_SAMPLING_TILE = Tile(num_warps=8, pdl=True)


class DeviceSampler:
    """Parameters of all slots, and the draw for the rows of a step, on the device."""

    def __init__(self, table: RequestTable, vocab_size: int, max_rows: int) -> None:
        self._table, self._vocab_size, device = table, vocab_size, table.device
        self.params = SamplingRows.empty(len(table.lengths), device)
        for column in vars(self.params).values():
            column.zero_()  # greedy, also in the scratch slot, which no request sets
        self._memory = sampling_memory(max_rows, vocab_size, device)
        self._writes = DeviceWrites(**vars(self.params))

    def admit(self, slot: int, state: SamplingState) -> None:
        params, put = state.params, self._writes.put
        put("temperature", slot, params.temperature)
        put("top_k", slot, min(params.top_k, self._vocab_size))  # users write 2^63 for "all"
        put("top_p", slot, params.top_p)
        put("min_p", slot, params.min_p)
        put("seeds", slot, 0 if state.is_greedy else state.seed)
        put("positions", slot, state.num_output)

    def flush(self) -> None:
        """What was admitted holds for every draw that is launched from now on."""
        self._writes.flush()

    def sample(
        self, logits: torch.Tensor, slots: torch.Tensor, num_live: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [S, vocab], slots [S] -> tokens [S] int32, and each row's largest logit; the table keeps tokens."""
        count, device = slots.shape[0], slots.device
        rows = SamplingRows.empty(count, device)
        gather_sampling(slots, self.params, rows)
        tokens = torch.empty(count, dtype=torch.int32, device=device)
        largest = torch.empty(count, dtype=torch.float32, device=device)
        memory = SamplingMemory(*(part[:count] for part in vars(self._memory).values()))
        sample(logits, rows, memory, tokens, largest, _SAMPLING_TILE)
        self.keep(slots, tokens, num_live)
        return tokens, largest

    def keep(self, slots: torch.Tensor, tokens: torch.Tensor, num_live: torch.Tensor) -> None:
        """The table has the tokens for the next step, and each slot counts one draw more."""
        keep_tokens(slots, tokens, self._table.last_tokens, self.params.positions, num_live)


@dataclass(frozen=True)
class DeviceTokens:
    """Tokens on their way to the host. ``by_host``: rows that the host has sampled, by number. ``digests``: of each
    row's logits, if they are wanted."""

    tokens: torch.Tensor  # [S], in pinned memory
    largest: torch.Tensor
    arrived: torch.cuda.Event | None
    places: list[int]  # each row's output token, counted from 0
    by_host: dict[int, SampledRow]
    digests: list[bytes] = field(default_factory=list)

    def is_ready(self) -> bool:
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]

    def collect(self) -> list[SampledRow]:
        if self.arrived is not None:
            self.arrived.synchronize()
        drawn = zip(self.tokens.tolist(), self.largest.tolist(), self.places, strict=True)
        rows = [self.by_host.get(number) or _row(*row) for number, row in enumerate(drawn)]
        if not self.digests:
            return rows
        return [replace(row, digest=digest) for row, digest in zip(rows, self.digests, strict=True)]


@dataclass(frozen=True)
class EndOfStep:
    """Where the device is when it has done a step that gives this rank no tokens."""

    reached: torch.cuda.Event | None

    def is_ready(self) -> bool:
        return self.reached is None or bool(self.reached.query())  # type: ignore[no-untyped-call]

    def collect(self) -> list[SampledRow]:
        if self.reached is not None:
            self.reached.synchronize()
        return []


def _row(token: int, largest: float, place: int) -> SampledRow:
    if math.isfinite(largest):
        return SampledRow(token)
    return SampledRow(-1, failure=bad_numbers(largest, place, "NaN or infinity"))


@dataclass(frozen=True)
class DecodeRows:
    """A batch of which a graph finds everything in the tables."""

    num_tokens: int


class GpuSteps:
    """``Steps`` of a GPU; also in Triton's interpreter, without graphs. ``digests``: the host waits for each step's
    logits, and digests each row; none is drawn without its logits."""

    def __init__(
        self,
        model: Stage,
        cache: StageCache,
        table: RequestTable,
        collectives: Collectives,
        sampler: DeviceSampler | None,
        overlaps: bool,
        digests: bool = False,
    ) -> None:
        self._model, self._cache, self._table, self._collectives = model, cache, table, collectives
        self._sampler, self.overlaps, self._digests = sampler, overlaps, digests
        self._graphs: DecodeGraphs | None = None
        self._prompts: PromptGraphs | None = None

    def capture(self, max_rows: int, inputs: HiddenStates | None) -> None:
        """Graphs of decode steps of up to ``max_rows`` rows; ``inputs`` [max_rows, H] each: from the stage before."""
        self._graphs = DecodeGraphs(self._table, max_rows, self._compute, self._kinds, inputs)

    def capture_prompts(self, sizes: Sequence[int], inputs: HiddenStates | None) -> None:
        """Graphs of short prompts, in the memory of those of decode steps; ``inputs`` as many rows as the largest."""
        assert self._graphs is not None
        self._prompts = PromptGraphs(self._table, sizes, self._compute, inputs, self._graphs.pool)

    def run_decode(self, size: int, inputs: HiddenStates | None) -> None:
        """The launches of the graphs of ``size`` rows, one by one."""
        for greedy in self._kinds:
            DecodeStep(size, self._table, inputs).run(self._compute, greedy)

    def run_short_prompt(self, size: int, inputs: HiddenStates | None) -> None:
        """The launches of the graph of a short prompt, one by one."""
        PromptStep(size, self._table, inputs).run(self._compute)

    @property
    def _kinds(self) -> tuple[bool, ...]:
        """Whether a step is greedy: of the graphs of a size."""
        return (False, True) if self._sampler is not None and not self._digests else (False,)

    def admit(self, slot: int, state: SamplingState) -> None:
        if self._sampler is not None:
            self._sampler.admit(slot, state)

    def make_batch(
        self, decodes: list[int], chunks: list[ChunkPlan], saved: Collection[SnapshotPlan]
    ) -> PlannedGpuBatch:
        self._table.flush()
        if self._sampler is not None:
            self._sampler.flush()
        if self._graphs is not None and decodes and not chunks:
            return PlannedGpuBatch(DecodeRows(len(decodes)), np.array(decodes, dtype=np.int64), decodes)
        if self._prompts is not None and not decodes and (rows := self._prompts.rows_of(chunks, saved)):
            ends = ((rows.slot, rows.start + rows.num_tokens),)
            return PlannedGpuBatch(rows, np.empty(0, dtype=np.int64), [rows.slot], ends=ends)
        assert isinstance(self._model.ops, GpuOperations)
        return make_gpu_batch(self._table, decodes, chunks, saved, self._model.ops.takes_lone_tokens_as_decodes)

    def forward(self, planned: PlannedGpuBatch, states: HiddenStates | None) -> HiddenStates | StepOutput:
        batch = planned.batch
        if isinstance(batch, DecodeRows):
            assert self._graphs is not None
            output = self._graphs.launch(planned.sampled, states, self._is_greedy(planned.sampled))
        elif isinstance(batch, PromptRows):
            assert self._prompts is not None
            output = self._prompts.launch(batch, states)
        else:
            assert planned.sample_slots is not None
            assert planned.num_samples is not None
            output = self._compute(
                batch, states, planned.sample_slots, planned.num_samples, greedy=False, planned=planned
            )
            if batch.num_decodes:
                advance_rows(batch.decode_slots, self._table.lengths, batch.num_live)
        if output.states is not None:
            return output.states.first_rows(batch.num_tokens)
        return output

    def sample(self, planned: PlannedGpuBatch, output: StepOutput, states: list[SamplingState]) -> DeviceTokens:
        assert output.tokens is not None
        assert output.largest is not None
        places = [state.num_output for state in states]
        by_host = self._sample_on_host(planned.sampled, output.logits, states)
        for number, state in enumerate(states):
            if number not in by_host:
                state.num_output += 1
        count = len(states)
        on_way = _to_host(output.tokens[:count], output.largest[:count])
        return DeviceTokens(*on_way, places, by_host, self._digests_of(output.logits, count))

    def _digests_of(self, logits: torch.Tensor | None, count: int) -> list[bytes]:
        if not self._digests or not count:
            return []
        assert logits is not None
        return [row_digest(row) for row in logits[:count].float().cpu()]

    def end(self) -> EndOfStep:
        return EndOfStep(None if INTERPRETED else _event())

    def _compute(
        self,
        batch: GpuBatch,
        states: HiddenStates | None,
        slots: torch.Tensor,
        num_live: torch.Tensor,
        greedy: bool,
        planned: PlannedGpuBatch | None = None,
    ) -> StepOutput:
        """The stage, and the draw for ``slots``, of which ``num_live`` are no padding. ``planned`` may want log
        probabilities of its prompts, for which the host waits."""
        model, sampler = self._model, self._sampler
        states = model.run_layers(batch, states, self._cache, self._collectives)
        if not model.stage.is_last:
            return StepOutput(states=model.ops.joined(states))
        if greedy:
            assert sampler is not None
            tokens, largest = self._likeliest(states)
            sampler.keep(slots, tokens, num_live)
            return StepOutput(tokens=tokens, largest=largest)
        if planned is not None:
            planned.prompt_logprobs.update(score_prompts(model, states, planned, self._collectives))
        logits = model.logits(states, batch, self._collectives)
        if sampler is None or batch.num_samples == 0:
            return StepOutput(logits=logits)
        return StepOutput(None, logits, *sampler.sample(logits, slots, num_live))

    def _likeliest(self, states: HiddenStates) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest token of every row [T] int32 and its logit [T] float32, over the vocabulary of all ranks."""
        model, collectives = self._model, self._collectives
        assert isinstance(model.ops, GpuOperations)
        tokens, values = model.ops.likeliest(states, model.norm, model.lm_head.stored, model.lm_head.start)
        if collectives.size == 1:
            return tokens, values
        return likeliest_of_ranks(tokens, values, collectives)

    def _is_greedy(self, slots: list[int]) -> bool:
        """Whether nothing but the likeliest token of each row is wanted, which only the last stage knows."""
        if self._digests:
            return False
        states = [self._table.rows[slot].sampling for slot in slots]
        return all(state is not None and state.is_greedy and not state.needs_host for state in states)

    def _sample_on_host(
        self, slots: list[int], logits: torch.Tensor | None, states: list[SamplingState]
    ) -> dict[int, SampledRow]:
        numbers = [number for number, state in enumerate(states) if state.needs_host]
        if not numbers:
            return {}
        assert logits is not None
        rows = sample_on_host(logits[numbers].float().cpu(), [states[number] for number in numbers])
        tokens = torch.tensor([max(0, row.token) for row in rows], dtype=torch.int32)
        self._table.put_tokens([slots[number] for number in numbers], tokens)
        return dict(zip(numbers, rows, strict=True))


def likeliest_of_ranks(
    tokens: torch.Tensor, values: torch.Tensor, collectives: Collectives
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the likeliest tokens [T] of each rank's part of the vocabulary: the likeliest of all, the lowest id among
    equals. Ids go as float32, which holds each exactly (``check_tensor_parallel``)."""
    own, size = torch.stack((values, tokens.float())), collectives.size
    gathered = collectives.all_gather_columns(own, (tokens.shape[0],) * size).view(2, size, -1)
    value, token = gathered[:, 0]
    for rank in range(1, size):
        is_larger = gathered[0, rank] > value
        value, token = torch.where(is_larger, gathered[:, rank], torch.stack((value, token)))
    return token.to(torch.int32), value.contiguous()


def _to_host(tokens: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.cuda.Event | None]:
    if INTERPRETED:
        return tokens, largest, None
    copies = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in (tokens, largest)]
    for copy, part in zip(copies, (tokens, largest), strict=True):
        copy.copy_(part, non_blocking=True)
    return copies[0], copies[1], _event()


def _event() -> torch.cuda.Event:
    """Here, in the current stream."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
