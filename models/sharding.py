"""The part of the model that a rank holds: its stage's layers, its heads, columns and vocabulary rows. No torch."""

from dataclasses import dataclass

from splitrank.models.config import ModelConfig

Range = tuple[int, int]  # [start, stop)


@dataclass(frozen=True)
class TensorShard:
    """A tensor rank: ``rank`` of ``size``."""

    rank: int
    size: int

    def even(self, total: int) -> Range:
        """Range of ``total`` that ``size`` divides (checked by ``check_tensor_parallel``)."""
        assert total % self.size == 0, (total, self.size)
        local = total // self.size
        return self.rank * local, (self.rank + 1) * local

    def groups(self, num_groups: int) -> Range:
        """Range of key (or kv) heads. With fewer heads than ranks, several ranks hold the same head."""
        if num_groups >= self.size:
            return self.even(num_groups)
        first = self.rank * num_groups // self.size
        return first, first + 1

    def vocabulary(self, vocab_size: int) -> Range:
        """Range of vocabulary rows; sizes differ by at most one where ``size`` does not divide."""
        share, extra = divmod(vocab_size, self.size)
        start = self.rank * share + min(self.rank, extra)
        return start, start + share + (self.rank < extra)


@dataclass(frozen=True)
class StageSlice:
    """A pipeline stage: layers [start, stop) of the model, with the embedding on the first and the head on the last."""

    pp_rank: int
    pp_size: int
    start: int
    stop: int

    @property
    def is_first(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def layers(self) -> range:
        return range(self.start, self.stop)


def stage_slice(pp_rank: int, pp_size: int, partition: tuple[int, ...]) -> StageSlice:
    """The stage of ``pp_rank`` under ``partition`` (layers a stage)."""
    assert len(partition) == pp_size, (partition, pp_size)
    assert 0 <= pp_rank < pp_size, (pp_rank, pp_size)
    start = sum(partition[:pp_rank])
    return StageSlice(pp_rank, pp_size, start, start + partition[pp_rank])


def equal_partition(num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Equal counts; the remainder goes to the first stages, since the last one holds the head, too."""
    check_partition(num_layers, pp_size, None)
    share, extra = divmod(num_layers, pp_size)
    return tuple(share + (rank < extra) for rank in range(pp_size))


def check_partition(num_layers: int, pp_size: int, partition: tuple[int, ...] | None) -> None:
    """Refuses more stages than layers, and a partition that does not cover the layers."""
    if pp_size > num_layers:
        raise ValueError(f"pp {pp_size} exceeds the model's {num_layers} layers: a stage would hold none")
    if partition is None:
        return
    if len(partition) != pp_size:
        raise ValueError(f"partition {list(partition)} names {len(partition)} stages, but pp is {pp_size}")
    if min(partition) < 1:
        raise ValueError(f"partition {list(partition)} leaves a stage without layers")
    if sum(partition) != num_layers:
        raise ValueError(f"partition {list(partition)} sums to {sum(partition)}, but the model has {num_layers} layers")


MAX_SUMMED_ID = 2**24  # the largest range of integers that float32 holds; every all-reduce takes float32


def check_tensor_parallel(config: ModelConfig, tp_size: int) -> None:
    """Refuses a tensor-parallel size that does not divide the heads and inner widths; the message has the numbers."""
    for name in (
        "num_attention_heads",
        "linear_num_value_heads",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
    ):
        if getattr(config, name) % tp_size:
            raise ValueError(f"tp {tp_size} does not divide {name} {getattr(config, name)}")
    for name in ("num_key_value_heads", "linear_num_key_heads"):
        heads = getattr(config, name)
        if heads % tp_size and tp_size % heads:
            raise ValueError(f"tp {tp_size} neither divides {name} {heads} nor is a multiple of it")
    if tp_size > config.vocab_size:
        raise ValueError(f"tp {tp_size} exceeds the vocabulary of {config.vocab_size}")
    if tp_size > 1 and config.vocab_size > MAX_SUMMED_ID:
        raise ValueError(
            f"tp {tp_size}: token ids cross the ranks as float32, exact up to {MAX_SUMMED_ID}, but the "
            f"vocabulary has {config.vocab_size}"
        )
