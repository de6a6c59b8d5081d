"""Sizes of one tensor rank's part of a layer, for the weight plan, layers, caches and memory. No torch.

Ranges are among the whole model's heads, columns or rows; ``num_…`` and ``…_dim`` are this rank's counts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

from splitrank.models.config import ModelConfig
from splitrank.models.sharding import Range, TensorShard

STATE_PERIOD = 8  # a GPU's decode steps write the recurrent state at every 8th position


def length(range_: Range) -> int:
    """Elements of a range."""
    return range_[1] - range_[0]


def pending_shape(key_heads: int, key_dim: int, heads: int, value_dim: int) -> tuple[int, int]:
    """Shape of the updates that a recurrent state lacks since a GPU's decode steps wrote it, [positions, width].

    A row holds a position's keys, its updates of the values, and each head's sum of log decays since the state was
    written."""
    return STATE_PERIOD - 1, key_heads * key_dim + heads * (value_dim + 1)


@dataclass(frozen=True)
class LayerShapes:
    """Made by ``of``, for a tensor-parallel size that ``check_tensor_parallel`` accepts."""

    config: ModelConfig
    q_heads: Range
    kv_heads: Range  # with more ranks than heads, several ranks hold the same one
    key_heads: Range  # of DeltaNet; the same rule
    value_heads: Range
    expert_inner: Range  # inner width of a routed expert
    shared_inner: Range
    vocabulary: Range

    @classmethod
    def of(cls, config: ModelConfig, shard: TensorShard) -> Self:
        """This rank's part of every split size of ``config``."""
        return cls(
            config,
            q_heads=shard.even(config.num_attention_heads),
            kv_heads=shard.groups(config.num_key_value_heads),
            key_heads=shard.groups(config.linear_num_key_heads),
            value_heads=shard.even(config.linear_num_value_heads),
            expert_inner=shard.even(config.moe_intermediate_size),
            shared_inner=shard.even(config.shared_expert_intermediate_size),
            vocabulary=shard.vocabulary(config.vocab_size),
        )

    # ------------------------------------------------------------ full attention

    @cached_property
    def num_heads(self) -> int:
        return length(self.q_heads)

    @cached_property
    def num_kv_heads(self) -> int:
        return length(self.kv_heads)

    @cached_property
    def qkv_widths(self) -> tuple[int, int, int]:
        """Columns of the fused projection: query and gate, key, value."""
        kv_dim = self.num_kv_heads * self.config.head_dim
        return 2 * self.num_heads * self.config.head_dim, kv_dim, kv_dim

    # ------------------------------------------------------------ DeltaNet

    @cached_property
    def num_key_heads(self) -> int:
        return length(self.key_heads)

    @cached_property
    def num_value_heads(self) -> int:
        return length(self.value_heads)

    @cached_property
    def key_dim(self) -> int:
        return self.num_key_heads * self.config.linear_key_head_dim

    @cached_property
    def value_dim(self) -> int:
        return self.num_value_heads * self.config.linear_value_head_dim

    @cached_property
    def conv_dim(self) -> int:
        """Channels of the convolution: q, k and v."""
        return 2 * self.key_dim + self.value_dim

    @cached_property
    def delta_widths(self) -> tuple[int, int, int, int]:
        """Columns of the fused input projection: q k v (the convolution's channels), z, b, a."""
        return self.conv_dim, self.value_dim, self.num_value_heads, self.num_value_heads

    def conv_state(self, target: str) -> tuple[int, int]:
        """Shape of a request's convolution state: the last inputs, on a GPU in a ring with a place for the next one."""
        taps = self.config.linear_conv_kernel_dim
        return (taps if target == "cuda" else taps - 1), self.conv_dim

    @cached_property
    def delta_state(self) -> tuple[int, int, int]:
        """Shape of a request's recurrent state: value heads, key head dim, value head dim."""
        return self.num_value_heads, self.config.linear_key_head_dim, self.config.linear_value_head_dim

    def pending_updates(self, target: str) -> tuple[int, int] | None:
        """``pending_shape`` of a request. None where every step writes the state."""
        heads, key_dim, value_dim = self.delta_state
        return pending_shape(self.num_key_heads, key_dim, heads, value_dim) if target == "cuda" else None
