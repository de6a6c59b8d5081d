"""One rank's work: build the stage, load its weights, execute step plans. Knows no sockets: tests drive it directly."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Thread

import torch

from splitrank.comm.mesh import Mesh
from splitrank.comm.position import mesh_position
from splitrank.comm.selection import AllReduceOptions
from splitrank.comm.stage_link import StageLinkOptions
from splitrank.comm.stage_network import StageNetwork
from splitrank.models.cache import StageCache
from splitrank.models.checkpoint import Checkpoint, open_checkpoint
from splitrank.models.config import read_config
from splitrank.models.dummy_weights import fill_dummy
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layers.parameter import prepare
from splitrank.models.loader import load_weights
from splitrank.models.memory import GIB, rank_memory
from splitrank.models.qwen3_5 import Stage
from splitrank.models.rounding import pages_needed
from splitrank.models.sharding import TensorShard, stage_slice
from splitrank.models.torch_dtype import torch_dtype
from splitrank.models.verify_weights import verify_weights
from splitrank.models.weight_plan import WeightPlan, audit_plan, plan_weights
from splitrank.serving.grammar.matcher import Matchers
from splitrank.serving.protocol.messages import AdmittedRequest, LaunchSpec, StepPlan, StepResult, TokenLogprobs
from splitrank.serving.rank.batch_builder import PlannedBatch
from splitrank.serving.rank.device import exactness, make_operations, make_steps, start_compiling
from splitrank.serving.rank.layer_trace import LayerTrace
from splitrank.serving.rank.request_table import MovedRow, RequestTable
from splitrank.serving.rank.sampler import SampledRow
from splitrank.serving.rank.sampling_state import SamplingState
from splitrank.serving.rank.steps import Logits, PendingTokens
from splitrank.serving.rank.token_feedback import TokenFeedback

# Joining is collective, and a rank joins only when it has started: on a loaded machine that takes a while.
JOIN_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class LaunchedStep:
    """A step on its way. ``tokens``: on the sampling rank, if rows of it are sampled; and where steps of several stages
    overlap, so that a rank knows when its device has come to the end."""

    step: int
    plan_hash: str
    sampled: list[int]
    tokens: PendingTokens | None
    prompt_logprobs: dict[int, list[TokenLogprobs]]

    @property
    def is_done(self) -> bool:
        """Whether ``collect`` would not wait for the device."""
        return self.tokens is None or self.tokens.is_ready()


class Worker:
    """Construction joins the mesh (collective over all ranks); then ``load``; then ``execute`` plan by plan.
    ``network`` reaches the ranks of other hosts, if there are any."""

    def __init__(self, spec: LaunchSpec, rank: int, network: StageNetwork | None = None) -> None:
        self.spec = spec
        self.position = mesh_position(rank, spec.pp_size, spec.tp_size)
        self.config = replace(read_config(Path(spec.model_dir)), tie_word_embeddings=spec.tie_word_embeddings)
        self.stage_slice = stage_slice(self.position.pp_rank, spec.pp_size, spec.partition)
        self.shard = TensorShard(self.position.tp_rank, spec.tp_size)
        self.dtype = torch_dtype(spec.dtype)
        self.ops = make_operations(spec, rank, self.config, self.shard)
        self._compiler = start_compiling(spec, rank, self.ops.device)
        self._trace: LayerTrace | None = None
        timeout_s = max(spec.step_timeout_s, JOIN_TIMEOUT_S)
        options = AllReduceOptions(spec.all_reduce, spec.all_reduce_codec)
        self.mesh = Mesh(
            self.position,
            Path(spec.run_dir) / "rendezvous",
            timeout_s,
            options,
            self.ops.device,
            self._link_options(),
            network,
        )
        max_pages = pages_needed(spec.max_model_len, spec.page_size)
        self.table = RequestTable(
            spec.max_running_requests, max_pages, spec.page_size, self.ops.device, spec.scratch_page
        )
        self._feedback = TokenFeedback(self.table, self.mesh, spec.max_in_flight)
        self.matchers = Matchers(Path(spec.model_dir), self.config.vocab_size, spec.eos_token_ids)
        self._swapped: dict[int, tuple[MovedRow, list[torch.Tensor]]] = {}  # by request
        self._snapshots: dict[int, list[torch.Tensor]] = {}

    @property
    def is_sampling_rank(self) -> bool:
        return self.stage_slice.is_last and self.position.tp_rank == 0

    @property
    def draws_tokens(self) -> bool:
        """Whether this rank draws tokens. On a GPU every tensor rank of the last stage does: they draw the same tokens
        from the same logits, so none waits for another's host before its next step."""
        return self.is_sampling_rank or (self.stage_slice.is_last and self.spec.device == "cuda")

    @property
    def stage_report(self) -> str:
        """How the stage sums over its tensor ranks, and how fast it reaches the next host, from the first of them; and
        from that of the last stage, which receives hidden states, how stages are linked. Empty if there is but one."""
        reports = [self.mesh.report, self.mesh.speed_report] if self.position.tp_rank == 0 else []
        if self.is_sampling_rank:
            reports.append(self.mesh.link_report)
        return "\n".join(filter(None, reports))

    def _link_options(self) -> StageLinkOptions:
        """A GPU's stages receive into memory for the largest step: hidden states, on the first stage tokens."""
        spec = self.spec
        if spec.device == "cpu":
            return StageLinkOptions("socket")
        rows = spec.max_running_requests
        row_bytes = 4
        if not self.stage_slice.is_first:
            rows += spec.max_prefill_tokens
            row_bytes = self.config.hidden_size * self.dtype.itemsize
        return StageLinkOptions(spec.stage_link, rows * row_bytes, spec.devices)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The headers, read once."""
        return open_checkpoint(Path(self.spec.model_dir), self.config)

    @cached_property
    def plan(self) -> WeightPlan:
        """This rank's weight plan, audited, from the checkpoint's headers."""
        checkpoint = None if self.spec.load_format == "dummy" else self.checkpoint
        plan = plan_weights(self.config, self.stage_slice, self.shard, self.spec.dtype, checkpoint)
        audit_plan(plan)
        return plan

    def load(self, on_progress: Callable[[int], object] = lambda num_bytes: None) -> str:
        """Builds the stage, loads it, allocates its state; returns the report line of this rank.

        Meanwhile a rank that draws tokens reads the vocabulary for grammars: in a step it would stop all requests.
        """
        reading = Thread(target=self.matchers.read_vocabulary, name="vocabulary", daemon=True)
        if self.draws_tokens:
            reading.start()
        try:
            return self._load(on_progress)
        finally:
            if self.draws_tokens:
                reading.join()

    def _load(self, on_progress: Callable[[int], object]) -> str:
        self.model = Stage(self.config, self.stage_slice, self.spec.partition, self.shard, self.dtype, self.ops)
        began = time.monotonic()
        if self.spec.load_format == "dummy":
            bytes_written = fill_dummy(self.model, self.plan, self.config, on_progress)
        else:
            bytes_written = load_weights(self.model, self.plan, self.checkpoint, on_progress)
        seconds = time.monotonic() - began
        if self.spec.verify_weights:
            verify_weights(self.model, self.config, self.shard, self.checkpoint, str(self.position))
        self.cache = StageCache(
            self.config,
            self.stage_slice,
            self.shard,
            self.dtype,
            self.spec.num_pages + self.spec.num_scratch,
            self.spec.page_size,
            self.spec.max_running_requests + self.spec.num_scratch,
            self.ops,
        )
        report = self._report(bytes_written, seconds)
        prepare(self.model, self.ops)
        if self._compiler is not None:
            self._compiler.wait()
        if self.spec.trace_dir:
            folder, rank = Path(self.spec.trace_dir), self.position.rank
            self._trace = LayerTrace(folder, str(self.position), rank, self.model, self.table)
        waits_on_device = self.spec.pp_size == 1 or self.mesh.device_link is not None
        self.steps = make_steps(self.spec, self.model, self.cache, self.table, self.mesh.collectives, waits_on_device)
        return report

    def _report(self, bytes_written: int, seconds: float) -> str:
        """One line of the start-up table; the bytes that the loader wrote are those of the plan."""
        assert bytes_written == self.plan.num_bytes, (bytes_written, self.plan.num_bytes)
        spec = self.spec
        expected = rank_memory(self.config, self.plan, spec.dtype, self.ops.target)
        tokens = (spec.num_pages + spec.num_scratch) * spec.page_size
        planned = expected.total(tokens, spec.max_running_requests + spec.num_scratch) - expected.weight_bytes
        assert self.cache.num_bytes == planned, (self.cache.num_bytes, planned)
        layers = self.stage_slice
        verified = ", verified" if self.spec.verify_weights else ""
        speed = f"{bytes_written / max(seconds, 1e-3) / 1e9:.2f} GB/s"
        weights = f"weights {bytes_written:,} B = planned{verified} ({bytes_written / GIB:.2f} GiB at {speed})"
        return (
            f"{self.position}  layers {layers.start}-{layers.stop - 1}  {weights}  "
            f"KV {tokens * expected.kv_bytes_per_token / GIB:.2f} GiB  "
            f"states {self.spec.max_running_requests * expected.state_bytes_per_request / GIB:.2f} GiB"
            f"{exactness(spec, self.ops, self.position.rank)}"
        )

    def execute(self, plan: StepPlan, plan_hash: str) -> StepResult | None:
        """Runs one step to its end; the sampling rank returns its result."""
        return self.collect(self.launch(plan, plan_hash))

    @torch.inference_mode()
    def launch(self, plan: StepPlan, plan_hash: str) -> LaunchedStep:
        """Starts one step. If ``steps.overlaps``, the next may be launched before this one is collected."""
        self._feedback.take(plan)
        self._move_rows(plan)
        self._restore_snapshots(plan)
        planned = self.steps.make_batch(plan.decodes, plan.chunks, plan.saved)
        logits = self._forward(planned, plan.step, plan_hash) if plan.has_rows else None
        self.table.advance(planned.host_slots, planned.ends)
        self._save_snapshots(plan, planned)
        tokens = self._sample(planned, logits) if logits is not None and self.draws_tokens else None
        if self.steps.overlaps and self.spec.pp_size > 1:
            self._feedback.pass_on(planned.sampled, plan.step, plan_hash)
            tokens = tokens or self.steps.end()
        return LaunchedStep(plan.step, plan_hash, planned.sampled, tokens, planned.prompt_logprobs)

    @torch.inference_mode()
    def collect(self, launched: LaunchedStep) -> StepResult | None:
        """Waits for the tokens of a step and hands them on; the sampling rank returns the step's result."""
        rows = launched.tokens.collect() if launched.tokens is not None else []
        self.mesh.check()  # what the result comes from has ended: nothing of this step is still running
        result = self._result(launched, rows) if self.is_sampling_rank else None
        if not self.steps.overlaps:  # else the device has kept the tokens where the next step finds them
            tokens = result.token_ids if result else None
            self._feedback.spread(tokens, launched.sampled, launched.step, launched.plan_hash)
        return result

    def _sample(self, planned: PlannedBatch, logits: Logits) -> PendingTokens | None:
        states = [row.sampling for slot in planned.sampled if (row := self.table.rows[slot]).sampling is not None]
        return self.steps.sample(planned, logits, states) if states else None

    def _result(self, launched: LaunchedStep, rows: list[SampledRow]) -> StepResult:
        failures = {number: row.failure for number, row in enumerate(rows) if row.failure is not None}
        logprobs = {number: row.logprobs for number, row in enumerate(rows) if row.logprobs is not None}
        tokens, of_prompts = [row.token for row in rows], launched.prompt_logprobs
        digests = [row.digest for row in rows] if self.spec.digests else []
        return StepResult(launched.step, launched.plan_hash, tokens, logprobs, failures, of_prompts, digests)

    def _forward(self, planned: PlannedBatch, step: int, plan_hash: str) -> Logits | None:
        """Receives from the stage before, runs this stage, sends to the next; logits on the last stage."""
        batch, link = planned.batch, self.mesh.link
        states = None
        if not self.stage_slice.is_first:
            shape = (batch.num_tokens, self.config.hidden_size)
            received = link.receive(2, shape, self.dtype, step, plan_hash)
            states = HiddenStates(*(part.to(self.ops.device) for part in received))
        output = self.steps.forward(planned, states)
        if isinstance(output, HiddenStates):
            if self.mesh.device_link is None:
                output = HiddenStates(*(part.to("cpu") for part in output))
                self.mesh.check()
            link.send(output, step, plan_hash)
            return None
        return output

    def _move_rows(self, plan: StepPlan) -> None:
        """Rows leave before others come in and get their slots and pages."""
        for kept in plan.kept:
            self._snapshots[kept.snapshot] = self.cache.save(self.table.pages_of(kept.slot, kept.num_tokens), kept.slot)
        for request in plan.released:
            self._release(request)
        for out in plan.swap_out:
            pages = self.table.pages_of(out.slot, int(self.table.host_lengths[out.slot]))
            saved = self.cache.save_to_host(pages, out.slot)
            self._swapped[out.request_number] = (self.table.take(out.slot), saved)
        for new in plan.admitted:
            sampling = self._sampling_state(new) if self.draws_tokens else None
            self.table.admit(new, sampling)
            if sampling is not None:
                self.steps.admit(new.slot, sampling)
        back = [(one.slot, *self._swapped.pop(one.request_number)) for one in plan.swap_in]
        for slot, moved, _ in back:
            self.table.put(slot, moved)
            if moved.row.sampling is not None:
                self.steps.admit(slot, moved.row.sampling)
        for pages_of_row in plan.pages:
            self.table.add_pages(pages_of_row)
        for slot, moved, saved in back:
            self.cache.restore(saved, self.table.pages_of(slot, moved.length), slot)

    def _sampling_state(self, new: AdmittedRequest) -> SamplingState:
        return SamplingState(new.prompt_token_ids, new.params, self.spec.eos_token_ids, self.matchers)

    def _release(self, request: int) -> None:
        """Running or swapped out. One that was aborted before any plan knew it is neither."""
        slot = self.table.slot_of(request)
        if slot is not None:
            self.table.take(slot)
        self._swapped.pop(request, None)

    def _restore_snapshots(self, plan: StepPlan) -> None:
        for one in plan.restored:
            self.cache.restore(self._snapshots[one.snapshot], self.table.pages_of(one.slot, one.num_tokens), one.slot)

    def _save_snapshots(self, plan: StepPlan, batch: PlannedBatch) -> None:
        """Inside a chunk the layers have copied the state; at its end, the state lies in the slot."""
        for saved in plan.saved:
            pages, copy = self.table.pages_of(saved.slot, saved.num_tokens), batch.copies.get(saved.snapshot)
            self._snapshots[saved.snapshot] = (
                self.cache.save_inside(pages, copy.tensors) if copy else self.cache.save(pages, saved.slot)
            )
        for snapshot in plan.dropped:  # with little room, also one that was saved a moment ago
            del self._snapshots[snapshot]

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()
        if self._trace is not None:
            self._trace.close()
        self.mesh.close()
