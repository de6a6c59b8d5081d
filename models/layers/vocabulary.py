"""Embedding and head, split by vocabulary rows over the tensor ranks."""

import torch
import torch.nn.functional as F
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.layers.norm import empty_parameter
from splitrank.models.ops.linear import linear, pack
from splitrank.models.sharding import TensorShard


class Embedding(nn.Module):
    """Rows of this rank; ids of other ranks give zero, and the sum over ranks is exact (one term is not zero)."""

    def __init__(self, vocab_size: int, hidden_size: int, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        self.start, self.stop = shard.vocabulary(vocab_size)
        self.weight = empty_parameter(self.stop - self.start, hidden_size, dtype=dtype)

    def forward(self, token_ids: torch.Tensor, collectives: Collectives) -> torch.Tensor:
        """token_ids [T] -> [T, hidden_size]."""
        if collectives.size == 1:
            return F.embedding(token_ids, self.weight)
        here = (token_ids >= self.start) & (token_ids < self.stop)
        rows = F.embedding(torch.where(here, token_ids - self.start, 0), self.weight)
        return collectives.all_reduce_(rows.masked_fill_(~here[:, None], 0.0))  # not times zero: a row may hold NaN


class Head(nn.Module):
    """Logits over the whole vocabulary, gathered from the ranks' columns. ``weight``: the embedding's, if tied."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        shard: TensorShard,
        dtype: torch.dtype,
        weight: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        shards = [TensorShard(rank, shard.size).vocabulary(vocab_size) for rank in range(shard.size)]
        self.widths = tuple(stop - start for start, stop in shards)
        own = empty_parameter(self.widths[shard.rank], hidden_size, dtype=dtype) if weight is None else weight
        self.is_tied = weight is not None
        self.weight = own

    def prepare(self) -> None:
        """After loading: packs a weight of its own; a tied one stays plain, since the embedding reads its rows."""
        self.packed = self.weight.data if self.is_tied else pack(self.weight.data)
        del self.weight

    def forward(self, hidden: torch.Tensor, collectives: Collectives) -> torch.Tensor:
        """hidden [S, hidden_size] -> float32 logits [S, vocab_size] on every rank."""
        return collectives.all_gather_columns(linear(hidden, self.packed), self.widths).float()
