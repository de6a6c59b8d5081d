"""What both kinds of a CPU's operations have in common: memory, and the embedding, which computes nothing."""

import torch
import torch.nn.functional as F

from splitrank.models.batch import Batch
from splitrank.models.ops.cpu import memory


class HostMemory:
    """A part of ``Operations``."""

    device = torch.device("cpu")
    target = "cpu"

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return memory.empty(*shape, dtype=dtype)

    def zeros(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def embed(self, weight: torch.Tensor, batch: Batch, start: int | None) -> torch.Tensor:
        token_ids = batch.token_ids
        if start is None:
            return F.embedding(token_ids, weight)
        here = (token_ids >= start) & (token_ids < start + weight.shape[0])
        rows = F.embedding(torch.where(here, token_ids - start, 0), weight)
        # Filled, not multiplied: row 0 may hold what no other token should get, and 0 * NaN is NaN.
        return rows.masked_fill_(~here[:, None], 0.0)
