"""Sizes that the GPU's kernels cannot take. No torch: a launch is refused before a process starts."""

from splitrank.models.config import ModelConfig
from splitrank.models.dtypes import DTYPES
from splitrank.models.layer_shapes import LayerShapes, length
from splitrank.models.sharding import TensorShard

_LEAST_DIM, _MOST_TAPS, _ALIGNED_BYTES = 16, 4, 16


def check_gpu_shapes(config: ModelConfig, tp_size: int, dtype: str) -> None:
    """``ValueError`` with the size.

    Heads lie in blocks of powers of two; rows of the experts' weights are read in bulk, 16 bytes at a time.
    """
    dims = {name: getattr(config, name) for name in ("head_dim", "linear_key_head_dim", "linear_value_head_dim")}
    for name, size in dims.items():
        if size < _LEAST_DIM or size & (size - 1):
            raise ValueError(f"{name} {size}: on a GPU a power of two of at least {_LEAST_DIM}; --device cpu takes it")
    if config.rotary_dim & (config.rotary_dim - 1):
        raise ValueError(
            f"{config.rotary_dim} rotated dims of a head: on a GPU a power of two; --device cpu takes them"
        )
    if config.linear_conv_kernel_dim > _MOST_TAPS:
        taps = config.linear_conv_kernel_dim
        raise ValueError(f"linear_conv_kernel_dim {taps}: on a GPU at most {_MOST_TAPS}; --device cpu takes it")
    inner = length(LayerShapes.of(config, TensorShard(0, tp_size)).expert_inner)
    step = _ALIGNED_BYTES // DTYPES[dtype].num_bytes
    for name, size in (("hidden_size", config.hidden_size), (f"moe_intermediate_size at tp {tp_size}", inner)):
        if size % step:
            raise ValueError(f"{name} {size}: on a GPU a multiple of {step} ({dtype}); --device cpu takes it")
