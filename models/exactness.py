"""Which layouts keep the promise of the exact mode: the same bits as every other such layout. No torch."""

from splitrank.comm.selection import AllReduceOptions
from splitrank.models.config import ModelConfig

SHARDS = 4  # of a row-parallel sum, whatever tp is (csrc/cpu/kernels.h)
EXACT_TENSOR_RANKS = (1, 2, 4)  # its divisors
_MOST_HEAD_DIM, _TAPS = 1024, range(2, 17)  # what the kernels' arrays hold
_ALIGNED_HEADS = 4  # a row of in_proj has two numbers a head beside whole heads: 16 bytes
_LEAST_K = 16  # of a tensor core's product


def inexact_because(device: str, tp_size: int, all_reduce: AllReduceOptions) -> str:
    """Why a layout's bits may differ from those of other layouts, or from step to step; empty if they do not."""
    if tp_size not in EXACT_TENSOR_RANKS:
        return f"tp {tp_size}: sums are cut for 1, 2 or 4 tensor ranks"
    if device != "cpu" and tp_size > 2 and all_reduce.backend != "quick":
        return f"tp {tp_size} with all_reduce {all_reduce.backend}: torch's adds in orders of its own; quick does not"
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
    """``ValueError`` if a row's address, and with it the order of a sum, would depend on the rows before it, or if a
    shard does not fill the blocks of a product."""
    widths = {
        "linear_num_value_heads": (config.linear_num_value_heads // tp_size, _ALIGNED_HEADS),
        "moe_intermediate_size": (config.moe_intermediate_size // SHARDS, _LEAST_K),
        "shared_expert_intermediate_size": (config.shared_expert_intermediate_size // SHARDS, _LEAST_K),
        "num_attention_heads": (config.num_attention_heads, SHARDS),
    }
    if tp_size > 1:
        widths["linear_num_key_heads"] = (max(1, config.linear_num_key_heads // tp_size), _ALIGNED_HEADS)
    for name, (width, step) in widths.items():
        if width % step:
            raise ValueError(
                f"{name} {getattr(config, name)} at tp {tp_size}: {width} a rank or shard, a multiple of {step} is "
                "exact; give --exact off"
            )
