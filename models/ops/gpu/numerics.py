"""Rounding and a cheaper sigmoid: what the prefill kernels share beside ``primitives``."""

import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import INTERPRETED

_CUTS = tl.constexpr(INTERPRETED)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x in float32 -> ``dtype``, to nearest, ties to even. The interpreter cuts bf16 off where a GPU rounds."""
    if _CUTS and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def quick_sigmoid(x):
    """1 / (1 + exp(-x)) as the square of a reciprocal root: that is one instruction, a division eight."""
    root = tl.rsqrt(1.0 + tl.exp(-x))
    return root * root
