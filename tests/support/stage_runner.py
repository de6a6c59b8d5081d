"""Drives one rank in this process, step by step, and gives the logits of every row: what parity tests compare.

Pages and slots are handed out here, in any order a test likes, by the same rules as the scheduler's.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from splitrank.models.config import read_config
from splitrank.models.ops.gpu.batch import GpuBatch
from splitrank.models.ops.gpu.rows import advance_rows
from splitrank.models.rounding import pages_needed
from splitrank.serving.protocol.messages import AdmittedRequest, ChunkPlan, LaunchSpec, NewPages
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.batch_builder import PlannedBatch
from splitrank.serving.rank.gpu_batch_builder import PlannedGpuBatch
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.worker import Worker

PAGE_SIZE, NUM_PAGES, NUM_SLOTS, CHUNK = 16, 96, 8, 64


def launch_spec(folder: Path, run_dir: Path, **overrides: Any) -> LaunchSpec:
    """A spec for ``folder`` at 1 x 1 in float32 unless told otherwise."""
    config = read_config(folder)
    fields: dict[str, Any] = {
        "run_dir": str(run_dir),
        "model_dir": str(folder),
        "dtype": "float32",
        "tp_size": 1,
        "pp_size": 1,
        "partition": (config.num_hidden_layers,),
        "tie_word_embeddings": config.tie_word_embeddings,
        "threads_per_rank": 1,
        "max_model_len": config.context_length,
        "max_running_requests": NUM_SLOTS,
        "page_size": PAGE_SIZE,
        "num_pages": NUM_PAGES,
        "chunked_prefill_size": CHUNK,
        "max_prefill_tokens": CHUNK,
        "max_queued_requests": 16,
        "vocab_size": config.vocab_size,
        "eos_token_ids": (),
        "seed": 0,
        "load_timeout_s": 60.0,
        "step_timeout_s": 30.0,
        "heartbeat_timeout_s": 15.0,
        "verify_weights": False,
        "exact": overrides.get("device", "cpu") == "cpu",
        "log_level": "error",
        "show_progress": False,
    }
    return LaunchSpec(**{**fields, **overrides})


def admitted(
    request: int, slot: int, prompt: list[int], params: SamplingParams | None = None, start: int = 0
) -> AdmittedRequest:
    """Greedy unless told otherwise."""
    return AdmittedRequest(slot, request, prompt, params or SamplingParams(temperature=0.0, max_tokens=100), start)


@dataclass
class Sequence:
    """A request as a test sees it: the tokens computed so far and where its state lies."""

    request: int
    slot: int
    pages: list[int]
    length: int = field(default=0)

    def take(self, tokens: list[int]) -> "Share":
        """The next tokens; advances the sequence."""
        share = Share(self, self.length, tokens)
        self.length += len(tokens)
        return share

    def generated(self, token: int) -> "Share":
        """The next token, as if the step before had sampled it."""
        share = Share(self, self.length, [token], is_generated=True)
        self.length += 1
        return share


@dataclass(frozen=True)
class Share:
    """What one step computes of a sequence: tokens that the test chooses."""

    sequence: Sequence
    start: int
    tokens: list[int]
    is_generated: bool = False  # a decode row, which no prompt has

    def sample(self, table: RequestTable) -> int:
        """Leaves a generated token where the step finds it; the slot."""
        table.put_tokens([self.sequence.slot], torch.tensor(self.tokens))
        return self.sequence.slot

    def enter(self, table: RequestTable) -> ChunkPlan:
        """Puts the tokens behind what the row's prompt has, so that they are computed whatever was sampled."""
        sequence, slot = self.sequence, self.sequence.slot
        if self.start == 0:
            if slot in table.rows:
                table.take(slot)
            table.admit(admitted(sequence.request, slot, []), None)
            table.add_pages(NewPages(slot, sequence.pages))
        row = table.rows[slot]
        assert (row.request, len(row.prompt)) == (sequence.request, self.start)
        table.rows[slot] = replace(row, prompt=torch.cat((row.prompt, torch.tensor(self.tokens))))
        return ChunkPlan(slot, len(self.tokens), sample=True)


def make_table(num_slots: int = NUM_SLOTS, num_pages: int = NUM_PAGES, page_size: int = PAGE_SIZE) -> RequestTable:
    return RequestTable(num_slots, num_pages, page_size, torch.device("cpu"))


class StageRunner:
    """A loaded 1 x 1 worker."""

    def __init__(self, folder: Path, run_dir: Path, **overrides: Any) -> None:
        self.worker = Worker(launch_spec(folder, run_dir, **overrides), rank=0)
        self.worker.load()
        self._free_pages = list(range(self.worker.spec.num_pages))[::-1]  # never page 0 first: a table's padding
        self._num_requests = 0

    def start(self, max_length: int, slot: int = 0) -> Sequence:
        """A sequence with pages of its own for ``max_length`` tokens."""
        count = pages_needed(max_length, self.worker.spec.page_size)
        pages, self._free_pages = self._free_pages[:count], self._free_pages[count:]
        assert len(pages) == count
        self._num_requests += 1
        return Sequence(self._num_requests, slot, pages)

    def end(self, sequence: Sequence) -> None:
        """Gives the pages back, dirty as they are; the next sequence gets them first."""
        self._free_pages = sequence.pages + self._free_pages

    @torch.inference_mode()
    def step(self, *shares: Share) -> list[torch.Tensor]:
        """One step of all shares together; logits [len(tokens), vocab] of every row, a tensor a share."""
        table = self.worker.table
        decodes = [share.sample(table) for share in shares if share.is_generated]
        chunks = [share.enter(table) for share in shares if not share.is_generated]
        planned = self.worker.steps.make_batch(decodes, chunks, ())
        firsts = _first_rows(planned, [(chunk.slot, chunk.num_tokens) for chunk in chunks])
        if isinstance(planned, PlannedGpuBatch):
            logits = self._step_of_gpu(planned)
        else:
            batch = replace(planned.batch, sample_rows=torch.arange(planned.batch.num_tokens, device=table.device))
            logits = self.worker._forward(replace(planned, batch=batch), 0, "")
        assert logits is not None
        table.advance(planned.host_slots, planned.ends)
        rows = {slot: slice(first, first + count) for slot, (first, count) in firsts.items()}
        return [logits[rows[share.sequence.slot]] for share in shares]

    def _step_of_gpu(self, planned: PlannedGpuBatch) -> torch.Tensor:
        """A step of a GPU draws at once, for the rows of the plan; a graph's logits are its next launch's, too."""
        worker, batch, table = self.worker, planned.batch, self.worker.table
        if not isinstance(batch, GpuBatch):
            output = worker.steps.forward(planned, None)
            return output.logits[: batch.num_tokens].clone()
        batch = replace(batch, sample_rows=torch.arange(batch.num_tokens, device=table.device))
        logits: torch.Tensor = worker.model(batch, None, worker.cache, worker.mesh.collectives)
        advance_rows(batch.decode_slots, table.lengths, batch.num_live)
        return logits

    def prefill(self, sequence: Sequence, tokens: list[int], chunk: int = CHUNK) -> torch.Tensor:
        """The prompt in chunks that end at multiples of ``chunk``, as the scheduler cuts it: [len(tokens), vocab]."""
        parts = [tokens[start : start + chunk] for start in range(0, len(tokens), chunk)]
        return torch.cat([self.step(sequence.take(part))[0] for part in parts])

    def decode(self, sequence: Sequence, tokens: list[int]) -> torch.Tensor:
        """One step a given token; logits [len(tokens), vocab]."""
        return torch.cat([self.step(sequence.take([token]))[0] for token in tokens])


def _first_rows(planned: PlannedBatch, chunks: list[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """First row and number of rows of each slot: decode rows first, then the chunks (slot, tokens) in their order."""
    singles = {slot: (row, 1) for row, slot in enumerate(planned.host_slots.tolist())}
    firsts, row = dict(singles), len(singles)
    for slot, count in chunks:
        if slot not in singles:
            firsts[slot] = (row, count)
            row += count
    return firsts


def random_tokens(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    tokens = torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in tokens]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Euclidean norm of the difference over that of what is expected, over all elements."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def worst_row_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """``relative_error`` of the worst row: one wrong position among many cannot hide."""
    return max(map(relative_error, found, expected))
