"""How one kind of device computes a rank's steps: the batch, the stage, the sampled tokens.

A worker owns the order of a step and what moves between slots; a ``Steps`` owns what differs by device.
"""

from collections.abc import Collection
from typing import Any, Protocol

from splitrank.models.hidden_states import HiddenStates
from splitrank.serving.protocol.messages import ChunkPlan, SnapshotPlan
from splitrank.serving.rank.batch_builder import PlannedBatch
from splitrank.serving.rank.sampler import SampledRow
from splitrank.serving.rank.sampling_state import SamplingState

Logits = Any  # what ``forward`` leaves for ``sample``, in the device's own form: on a CPU [S, vocab]


class PendingTokens(Protocol):
    """Tokens of a step, which the device may still be computing."""

    def is_ready(self) -> bool: ...

    def collect(self) -> list[SampledRow]:
        """One a sampled row, none on a stage that samples nothing; waits for the device."""
        ...


class Steps(Protocol):
    """The steps of one rank on one device. ``planned`` is what its own ``make_batch`` has made."""

    overlaps: bool  # whether a step may be launched before the tokens of the one before it are collected

    def admit(self, slot: int, state: SamplingState) -> None:
        """A request with these parameters and draws goes on in ``slot``."""
        ...

    def make_batch(
        self, decodes: list[int], chunks: list[ChunkPlan], saved: Collection[SnapshotPlan]
    ) -> PlannedBatch: ...

    def forward(self, planned: Any, states: HiddenStates | None) -> HiddenStates | Logits:
        """Runs the stage. On a GPU the lengths of its decode rows advance with it."""
        ...

    def sample(self, planned: Any, logits: Logits, states: list[SamplingState]) -> PendingTokens:
        """The tokens of ``planned.sampled``; ``states`` [S] advance."""
        ...

    def end(self) -> PendingTokens:
        """What stands for the tokens of a step without any on this rank: ready when the device has come to its end."""
        ...
