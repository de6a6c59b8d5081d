"""A linear layer without bias: a plain parameter until it is loaded, then the device's stored form of it."""

import torch
from torch import nn

from splitrank.models.layers.parameter import parameter
from splitrank.models.ops.operations import Operations


class Linear(nn.Module):
    """``weight`` [rows, columns] exists until ``prepare``; then ``stored`` holds the values alone."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.weight = parameter(ops, rows, columns, dtype=dtype)

    def prepare(self, ops: Operations) -> None:
        """After loading: stores the weight and lets the plain one go."""
        self.stored = ops.store(self.weight.data)
        del self.weight
