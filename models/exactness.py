"""Which layouts keep the promise of the exact mode: the same bits as every other such layout. No torch."""

from splitrank.comm.selection import AllReduceOptions
from splitrank.models.config import ModelConfig

EXACT_TENSOR_RANKS = (1, 2, 4)  # the divisors of the virtual shards of a row-parallel sum (csrc/cpu/kernels.h)
_MOST_HEAD_DIM, _TAPS = 1024, range(2, 17)  # what the kernels' arrays hold
_ALIGNED_HEADS = 4  # a row of in_proj has two numbers a head beside whole heads: 16 bytes


def inexact_because(device: str, tp_size: int, all_reduce: AllReduceOptions) -> str:
    """Why a layout's bits may differ from those of other layouts, or from step to step; empty if they do not."""
    if device != "cpu" and tp_size > 1:
        return f"tp {tp_size} on {device}: sums over tensor ranks are not cut into shards there"
    if tp_size not in EXACT_TENSOR_RANKS:
        return f"tp {tp_size}: sums are cut for 1, 2 or 4 tensor ranks"
    if all_reduce.codec != "none":
        return f"all_reduce_codec {all_reduce.codec}: which sums are coded depends on the rows of a step"
    return ""


def check_exact_shapes(config: ModelConfig) -> None:
    """``ValueError`` if a size does not fit the CPU's own kernels."""
    for name in ("head_dim", "linear_key_head_dim"):
        if getattr(config, name) > _MOST_HEAD_DIM:
            raise ValueError(f"{name} {getattr(config, name)}: at most {_MOST_HEAD_DIM}; give --exact off")
    if config.linear_conv_kernel_dim not in _TAPS:
        allowed = f"{_TAPS[0]} to {_TAPS[-1]}"
        raise ValueError(f"linear_conv_kernel_dim {config.linear_conv_kernel_dim}: {allowed}; give --exact off")


def check_exact_gpu_shapes(config: ModelConfig, tp_size: int) -> None:
    """``ValueError`` if a row's address, and with it the order of a sum, would depend on the rows before it."""
    heads = config.linear_num_value_heads // tp_size
    if heads % _ALIGNED_HEADS:
        raise ValueError(
            f"linear_num_value_heads {config.linear_num_value_heads} at tp {tp_size}: a multiple of {_ALIGNED_HEADS} a "
            "rank; give --exact off"
        )
