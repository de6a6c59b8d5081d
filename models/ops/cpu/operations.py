"""``Operations`` of a CPU without exactness: each verb composed of torch operations."""

import torch

from splitrank.models.batch import Batch
from splitrank.models.cache import KVPages, RecurrentSlots
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layers.attention import Attention
from splitrank.models.layers.linear import Linear
from splitrank.models.layers.linear_attention import LinearAttention
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import GatedRMSNorm, RMSNorm
from splitrank.models.layers.rotary import CosSin, RotaryEmbedding
from splitrank.models.ops.cpu.attention_mixer import mix_attention
from splitrank.models.ops.cpu.delta_mixer import mix_delta
from splitrank.models.ops.cpu.host import HostMemory
from splitrank.models.ops.cpu.linear import linear, pack
from splitrank.models.ops.cpu.moe import Expert, route, routed_experts, stored_experts, swiglu
from splitrank.models.ops.cpu.norm import gated_rms_norm, rms_norm


class CpuOperations(HostMemory):
    """Stateless: weights are tensors in torch's or oneDNN's layout (``linear.pack``)."""

    def store(self, weight: torch.Tensor) -> torch.Tensor:
        return pack(weight)

    def store_row_parallel(self, weight: torch.Tensor) -> torch.Tensor:
        return pack(weight)

    def store_router(self, router: torch.Tensor, shared_gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pack(router), pack(shared_gate_up)

    def store_experts(self, gate_up: torch.Tensor, down: torch.Tensor) -> list[Expert]:
        return stored_experts(gate_up, down)

    def cos_sin(self, batch: Batch, rotary: RotaryEmbedding, dtype: torch.dtype) -> CosSin:
        return rotary(batch.positions, dtype)

    def add_norm_project(
        self, states: HiddenStates, norm: RMSNorm, projection: Linear, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = states.residual + states.hidden
        return linear(rms_norm(residual, norm.scale, norm.eps), projection.stored), residual

    def mix_delta(
        self, projected: torch.Tensor, layer: LinearAttention, batch: Batch, slots: RecurrentSlots
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return mix_delta(projected, layer, batch, slots)

    def norm_gate_project(
        self,
        mixed: torch.Tensor,
        gate: torch.Tensor | None,
        norm: GatedRMSNorm,
        projection: Linear,
        batch: Batch,
    ) -> torch.Tensor:
        assert gate is not None
        gated = gated_rms_norm(mixed, gate, norm.weight, norm.eps)
        return linear(gated.flatten(1), projection.stored)

    def mix_attention(
        self, projected: torch.Tensor, layer: Attention, batch: Batch, pages: KVPages, cos_sin: CosSin
    ) -> torch.Tensor:
        return mix_attention(projected, layer, batch, pages, cos_sin)

    def project(self, x: torch.Tensor, projection: Linear, batch: Batch) -> torch.Tensor:
        return linear(x, projection.stored)

    def experts(self, states: HiddenStates, norm: RMSNorm, layer: SparseMoe, batch: Batch) -> HiddenStates:
        residual = states.residual + states.hidden
        x = rms_norm(residual, norm.scale, norm.eps)
        router, shared_gate_up = layer.stored_router
        logits = linear(x, router)
        chosen, weights = route(logits[:, :-1], layer.top_k, x.dtype)
        routed = routed_experts(x, chosen, weights, layer.experts.stored)
        shared = swiglu(x, shared_gate_up, layer.shared_expert.down_proj.stored)
        return HiddenStates(routed + torch.sigmoid(logits[:, -1:]) * shared, residual)

    def joined(self, states: HiddenStates) -> HiddenStates:
        return states

    def head(self, states: HiddenStates, batch: Batch, norm: RMSNorm, weight: torch.Tensor) -> torch.Tensor:
        chosen = (states.residual + states.hidden).index_select(0, batch.sample_rows)
        return linear(rms_norm(chosen, norm.scale, norm.eps), weight)
