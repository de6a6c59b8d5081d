"""Makes parameters, and prepares them after loading."""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from splitrank.models.ops.operations import Operations


@runtime_checkable
class Prepared(Protocol):
    """A layer that stores its weights in the device's form, or derives small constants from them, after loading."""

    def prepare(self, ops: Operations) -> None: ...


def parameter(ops: Operations, *shape: int, dtype: torch.dtype) -> nn.Parameter:
    """An uninitialised parameter on the device; the loader fills it."""
    return nn.Parameter(ops.empty(*shape, dtype=dtype), requires_grad=False)


def prepare(module: nn.Module, ops: Operations) -> None:
    """After loading: each layer stores its weights in the form that it computes with, one weight at a time."""
    for layer in module.modules():
        if isinstance(layer, Prepared):
            layer.prepare(ops)
