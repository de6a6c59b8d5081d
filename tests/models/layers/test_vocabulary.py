"""The embedding, split by rows of the vocabulary."""

from types import SimpleNamespace

import pytest
import torch

from splitrank.comm.collectives import SingleRank
from splitrank.models.layers.vocabulary import Embedding
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.sharding import TensorShard


class OneOfTwo(SingleRank):
    """One of two ranks, without the sum: what it alone adds."""

    size = 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_token_of_another_rank_adds_zeros_whatever_this_rank_holds(rank: int, bad: float) -> None:
    ops = CpuOperations()
    embedding = Embedding(10, 4, TensorShard(rank, 2), torch.float32, ops)
    embedding.weight.data.fill_(bad)
    own, other = 5 * rank + 2, 5 * (1 - rank) + 2
    found = embedding(SimpleNamespace(token_ids=torch.tensor([other, own])), ops, OneOfTwo())
    assert found[0].tolist() == [0.0] * 4
    assert not found[1].isfinite().any()
