"""Splitting the layers over pipeline stages: ``make_layers`` and its placeholders."""

from collections.abc import Callable
from typing import NoReturn

from torch import nn

from splitrank.models.sharding import check_partition, equal_partition, stage_slice


class PPMissingLayer(nn.Module):
    """The placeholder of another stage's layer: it keeps indices global, has no parameters, and raises if it is run."""

    def __init__(self, layer: int, pp_rank: int) -> None:
        super().__init__()
        self.layer, self.pp_rank = layer, pp_rank

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        raise AssertionError(f"layer {self.layer} is not on stage {self.pp_rank}")


def make_layers(
    num_layers: int,
    layer_fn: Callable[[int], nn.Module],
    pp_rank: int,
    pp_size: int,
    partition: tuple[int, ...] | None = None,
) -> nn.ModuleList:
    """Builds the layers of stage ``pp_rank`` only; entries of other stages are ``PPMissingLayer``.

    Args:
        num_layers: layers of the whole model; the returned list has this length, so indices (and names) are global.
        layer_fn: builds the layer of a global index; called for this stage's layers and no others.
        pp_rank, pp_size: without defaults on purpose. With a default of "all layers", a well-known engine loaded
            66 GB on each of two GPUs.
        partition: layers a stage; None means equal counts.

    Raises:
        ValueError: rank out of range, more stages than layers, or a partition that does not cover the layers.
    """
    if not 0 <= pp_rank < pp_size:
        raise ValueError(f"pp_rank {pp_rank} is not in 0..{pp_size - 1}")
    check_partition(num_layers, pp_size, partition)
    here = stage_slice(pp_rank, pp_size, partition or equal_partition(num_layers, pp_size)).layers
    return nn.ModuleList(layer_fn(i) if i in here else PPMissingLayer(i, pp_rank) for i in range(num_layers))
