"""A linear layer without bias: a plain parameter while it is loaded, then the form in which the device stores it."""

import torch
from torch import nn

from splitrank.models.layers.parameter import parameter
from splitrank.models.ops.operations import Operations


class Linear(nn.Module):
    """``weight`` [rows, columns] exists until ``prepare``; afterwards only ``stored`` holds the values.

    ``name`` tells a device which of the model's products it is: each has blocks of its own (``ops/gpu/tiles.py``).
    """

    def __init__(self, name: str, rows: int, columns: int, dtype: torch.dtype, ops: Operations) -> None:
        super().__init__()
        self.name = name
        self.weight = parameter(ops, rows, columns, dtype=dtype)

    def prepare(self, ops: Operations) -> None:
        """After loading: stores the weight and frees the plain parameter."""
        self.stored = ops.store(self.weight.data)
        del self.weight


class RowParallel(Linear):
    """Its inputs are split over the tensor ranks: a product is this rank's part of a sum."""

    def prepare(self, ops: Operations) -> None:
        self.stored = ops.store_row_parallel(self.weight.data)
        del self.weight
