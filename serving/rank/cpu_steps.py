"""Steps of a CPU: each is computed before the next begins."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from splitrank.comm.collectives import Collectives
from splitrank.models.cache import StageCache
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.ops import sampling
from splitrank.models.qwen3_5 import Stage
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.rank.batch_builder import PlannedBatch, make_batch
from splitrank.serving.rank.prompt_logprobs import score_prompts
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.sampler import Greedy, SampledRow, sample
from splitrank.serving.rank.sampling_state import SamplingState

if TYPE_CHECKING:
    from splitrank.models.ops.cpu.whole_stage import WholeStage


@dataclass(frozen=True)
class SampledTokens:
    """Tokens that are on the host already."""

    rows: list[SampledRow]

    def is_ready(self) -> bool:
        return True

    def collect(self) -> list[SampledRow]:
        return self.rows


class CpuSteps:
    """``Steps`` of a CPU. ``whole_stage`` computes all layers in one call, where there is one."""

    overlaps = False

    def __init__(
        self,
        model: Stage,
        cache: StageCache,
        table: RequestTable,
        collectives: Collectives,
        digests: bool = False,
        whole_stage: "WholeStage | None" = None,
        greedy: Greedy = sampling.greedy,
    ) -> None:
        self._model, self._cache, self._table, self._collectives = model, cache, table, collectives
        self._digests, self.whole_stage = digests, whole_stage
        self._greedy = greedy

    def admit(self, slot: int, state: SamplingState) -> None:
        """The sampler reads the state itself."""

    def make_batch(self, decodes: list[int], chunks: list[ChunkPlan], saved: Collection[SnapshotPlan]) -> PlannedBatch:
        return make_batch(self._table, decodes, chunks, saved)

    def forward(self, planned: PlannedBatch, states: HiddenStates | None) -> HiddenStates | torch.Tensor:
        model, batch = self._model, planned.batch
        if self.whole_stage is not None:
            states = self.whole_stage.run_layers(batch, states, self._collectives)
        else:
            states = model.run_layers(batch, states, self._cache, self._collectives)
        if not model.stage.is_last:
            return model.ops.joined(states)
        planned.prompt_logprobs.update(score_prompts(model, states, planned, self._collectives))
        return model.logits(states, batch, self._collectives)

    def sample(self, planned: PlannedBatch, logits: torch.Tensor, states: list[SamplingState]) -> SampledTokens:
        return SampledTokens(sample(logits.float(), states, self._digests, self._greedy))

    def end(self) -> SampledTokens:
        return SampledTokens([])
