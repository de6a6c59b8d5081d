"""Muon for the matrices of the hidden layers, AdamW for everything else; one optimizer, one learning rate.

Muon (Jordan, 2024): the step is the momentum with all its singular values near one, found by a few Newton-Schulz
iterations. Scaled as in "Muon is Scalable for LLM Training" (Liu et al., 2025) to the size of AdamW's steps, so that
rate and weight decay are shared. torch.optim.Muon takes single matrices only; a layer's experts are 16 in one tensor.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values end between 0.7 and 1.2
_ITERATIONS = 5
_ADAMW_RMS = 0.2


def has_matrices(name: str, weight: Tensor) -> bool:
    """Whether Muon takes this parameter: not the embeddings, the head, the router, gates of one output a head, or the
    convolution, whose rows are not a map between two hidden spaces."""
    apart = ("embed_tokens", "lm_head", "mlp.gate.", "shared_expert_gate", "in_proj_a", "in_proj_b", "conv1d")
    return weight.ndim >= 2 and not any(part in name for part in apart)


class MuonAdamW(torch.optim.Optimizer):
    """``groups`` as torch's; those with ``"muon": True`` hold matrices [..., rows, columns]. The others go to AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, fused: bool) -> None:
        groups = list(groups)
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "muon": False})
        others = [group for group in self.param_groups if not group["muon"]]
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        rates = [group["lr"] for group in self.param_groups if not group["muon"]]
        for group, rate in zip(self.adamw.param_groups, rates, strict=True):
            group["lr"] = rate
        self.adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Matrices of one shape go through Newton-Schulz together: a step is many small products otherwise."""
        by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape[tuple(weight.shape[-2:])].append(weight)
        for (rows, columns), weights in by_shape.items():
            wanted = torch.cat([self._nesterov(weight).reshape(-1, rows, columns) for weight in weights])
            counts = [weight.numel() // (rows * columns) for weight in weights]
            directions = torch.split(orthogonalized(wanted), counts)
            size = _ADAMW_RMS * max(rows, columns) ** 0.5
            for weight, direction in zip(weights, directions, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction.view_as(weight), alpha=-group["lr"] * size)

    def _nesterov(self, weight: Tensor) -> Tensor:
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(momentum, MOMENTUM)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": super().state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])


def orthogonalized(matrices: Tensor) -> Tensor:
    """Each of [N, rows, columns] with its singular values near 1, in float32; bf16 inside, as in the source."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    direction: Tensor = x.mT if tall else x
    return direction.float()
