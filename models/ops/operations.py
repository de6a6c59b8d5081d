"""The seam between the model and a device: a handful of verbs, each one launch or a few on a GPU.

Layers own parameters and the order of the verbs; an ``Operations`` owns memory, the stored form of weights, and
arithmetic. It is chosen once, in the worker, and passed as an argument. ``reference`` specifies the arithmetic.
Legend: T rows of the step, H hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from splitrank.models.hidden_states import HiddenStates

if TYPE_CHECKING:
    from splitrank.models.cache import KVPages, RecurrentSlots
    from splitrank.models.layers.attention import Attention
    from splitrank.models.layers.linear import Linear
    from splitrank.models.layers.linear_attention import LinearAttention
    from splitrank.models.layers.moe import SparseMoe
    from splitrank.models.layers.norm import GatedRMSNorm, RMSNorm
    from splitrank.models.layers.rotary import RotaryEmbedding

# In the device's own form, which only its own ``Operations`` looks into:
Stored = Any  # a weight
CosSin = Any  # cosines and sines of a step's positions
DeviceBatch = Any  # a step's rows: ``models.batch.Batch`` on a CPU, ``models.ops.gpu.batch.GpuBatch`` on a GPU


class Operations(Protocol):
    """One device's memory and arithmetic."""

    device: torch.device
    target: (
        str  # "cpu" or "cuda" (which is also ROCm's): decides the shape of recurrent slots, ``LayerShapes.conv_state``
    )

    # ------------------------------------------------------------ memory

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Storage of a parameter, aligned to 64 bytes, to be filled by the loader."""
        ...

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Storage of pages and slots."""
        ...

    def store(self, weight: torch.Tensor) -> Stored:
        """weight [N, K] -> its stored form. The caller lets ``weight`` go."""
        ...

    def store_row_parallel(self, weight: torch.Tensor) -> Stored:
        """The same of a weight whose columns are split over the tensor ranks."""
        ...

    def store_router(self, router: torch.Tensor, shared_gate_up: torch.Tensor) -> Stored:
        """router [E + 1, H] (row E is the shared expert's gate), shared_gate_up [2I, H] -> their stored form."""
        ...

    def store_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> Stored:
        """gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> their stored form. Both are given up."""
        ...

    # ------------------------------------------------------------ the verbs of a layer

    def embed(self, weight: torch.Tensor, batch: DeviceBatch, start: int | None) -> torch.Tensor:
        """The batch's tokens -> [T, H]. weight [V, H] is the whole vocabulary (``start`` None), or its rows from
        ``start`` on: then ids outside give zero."""
        ...

    def cos_sin(self, batch: DeviceBatch, rotary: RotaryEmbedding, dtype: torch.dtype) -> CosSin:
        """Cosines and sines of the batch's positions, made once a step for ``mix_attention``."""
        ...

    def add_norm_project(
        self, states: HiddenStates, norm: RMSNorm, projection: Linear, batch: DeviceBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden + residual, normed and projected -> ([T, N], the new residual [T, H])."""
        ...

    def mix_delta(
        self, projected: torch.Tensor, layer: LinearAttention, batch: DeviceBatch, slots: RecurrentSlots
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Convolution and gated delta rule of all rows; slots advance -> mixed [T, value heads, dim], and the gate of
        as many values, None if ``mixed`` is normed and gated already."""
        ...

    def norm_gate_project(
        self,
        mixed: torch.Tensor,
        gate: torch.Tensor | None,
        norm: GatedRMSNorm,
        projection: Linear,
        batch: DeviceBatch,
    ) -> torch.Tensor:
        """norm(mixed) * silu(gate) per head, projected -> [T, H], this rank's part of the sum."""
        ...

    def mix_attention(
        self, projected: torch.Tensor, layer: Attention, batch: DeviceBatch, pages: KVPages, cos_sin: CosSin
    ) -> torch.Tensor:
        """q/k norm, rotary, page write, causal attention, sigmoid gate -> [T, heads * head_dim]."""
        ...

    def project(self, x: torch.Tensor, projection: Linear, batch: DeviceBatch) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        ...

    def experts(self, states: HiddenStates, norm: RMSNorm, layer: SparseMoe, batch: DeviceBatch) -> HiddenStates:
        """hidden + residual, normed, routed, through the routed experts and the shared one.

        Returns this rank's part of the sum as ``hidden``, and the new residual.
        """
        ...

    def joined(self, states: HiddenStates) -> HiddenStates:
        """Both [T, H], for the next stage: ``experts`` may leave the parts of its sum to the norm that comes next."""
        ...

    def head(self, states: HiddenStates, batch: DeviceBatch, norm: RMSNorm, weight: Stored) -> torch.Tensor:
        """Final norm and this rank's logits of the sampled rows [S] -> [S, local vocabulary] in the model's dtype."""
        ...
