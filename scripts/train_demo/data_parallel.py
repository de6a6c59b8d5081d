"""Processes that train one model, each on its own batches, as torchrun starts them; one process alone needs nothing."""

import os

import torch
import torch.distributed as dist


class Workers:
    """``rank`` of ``count``, and the ``device`` of this one."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if self.count > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agreed(self, value: float) -> float:
        """The first process's."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def average_gradients(self, model: torch.nn.Module) -> None:
        """In one message."""
        if self.count == 1:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        parts = torch.split(together / self.count, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def close(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()
