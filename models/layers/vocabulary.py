"""Embedding and head, split by vocabulary rows over the tensor ranks."""

import torch
from torch import nn

from splitrank.comm.collectives import Collectives
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.layers.parameter import parameter
from splitrank.models.ops.operations import DeviceBatch, Operations
from splitrank.models.sharding import TensorShard


class Embedding(nn.Module):
    """This rank's rows. Ids of other ranks give zeros, so the sum over the ranks is exact."""

    def __init__(
        self, vocab_size: int, hidden_size: int, shard: TensorShard, dtype: torch.dtype, ops: Operations
    ) -> None:
        super().__init__()
        start, stop = shard.vocabulary(vocab_size)
        self.start = None if shard.size == 1 else start
        self.weight = parameter(ops, stop - start, hidden_size, dtype=dtype)

    def forward(self, batch: DeviceBatch, ops: Operations, collectives: Collectives) -> torch.Tensor:
        """The batch's tokens -> [T, hidden_size]."""
        return collectives.all_reduce_(ops.embed(self.weight, batch, self.start))


class Head(nn.Module):
    """Logits over the whole vocabulary, gathered from the ranks. ``weight`` is the embedding's if the head is tied."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        shard: TensorShard,
        dtype: torch.dtype,
        ops: Operations,
        weight: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        shards = [TensorShard(rank, shard.size).vocabulary(vocab_size) for rank in range(shard.size)]
        self.start, self.widths = shards[shard.rank][0], tuple(stop - start for start, stop in shards)
        own = parameter(ops, self.widths[shard.rank], hidden_size, dtype=dtype) if weight is None else weight
        self.is_tied = weight is not None
        self.weight = own

    def prepare(self, ops: Operations) -> None:
        """After loading: stores the weight, except a tied one, whose rows the embedding reads."""
        self.stored = self.weight.data if self.is_tied else ops.store(self.weight.data)
        del self.weight

    def forward(
        self, states: HiddenStates, batch: DeviceBatch, norm: RMSNorm, ops: Operations, collectives: Collectives
    ) -> torch.Tensor:
        """Logits of the sampled rows [S] in the model's dtype: [S, vocab_size] on every rank."""
        logits = ops.head(states, batch, norm, self.stored)
        return collectives.all_gather_columns(logits, self.widths)
