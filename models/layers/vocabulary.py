"""Embedding and head, split by vocabulary rows over the tensor ranks."""

import torch
import torch.nn.functional as F
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.layers.norm import empty_parameter
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
        return collectives.all_reduce_(rows * here[:, None])


class Head(nn.Module):
    """Logits over the whole vocabulary, gathered from the ranks' columns."""

    def __init__(self, vocab_size: int, hidden_size: int, shard: TensorShard, dtype: torch.dtype) -> None:
        super().__init__()
        shards = [TensorShard(rank, shard.size).vocabulary(vocab_size) for rank in range(shard.size)]
        self.widths = tuple(stop - start for start, stop in shards)
        self.weight = empty_parameter(self.widths[shard.rank], hidden_size, dtype=dtype)


def compute_logits(
    hidden: torch.Tensor, weight: torch.Tensor, widths: tuple[int, ...], collectives: Collectives
) -> torch.Tensor:
    """hidden [S, hidden_size], weight [local_vocab, hidden_size] -> float32 logits [S, vocab_size] on every rank."""
    return collectives.all_gather_columns(F.linear(hidden, weight), widths).float()
