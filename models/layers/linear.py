"""A linear layer without bias: a plain parameter until it is loaded, then the packed weight of ``ops.linear``."""

import torch
from torch import nn

from splitrank.models.layers.norm import empty_parameter
from splitrank.models.ops.linear import linear, pack


class Linear(nn.Module):
    """``weight`` [rows, columns] exists until ``prepare``; then ``packed`` holds the values alone."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = empty_parameter(rows, columns, dtype=dtype)

    def prepare(self) -> None:
        """After loading: packs the weight and lets the plain one go."""
        self.packed = pack(self.weight.data)
        del self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, columns] -> [T, rows]."""
        return linear(x, self.packed)
