"""What the kernels share: the wait for the launch before, products on tensor cores, sigmoid and silu."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from splitrank.models.ops.gpu.launch import INTERPRETED

_WIDENS = tl.constexpr(INTERPRETED)


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Stands before the first read of what the launch before has written, and before any write.

    Before it, a kernel may read what is older: weights, states, what was written two launches ago. That holds since
    every kernel of this package lets its successor start only after its own wait, and so does the all-reduce
    (csrc/README.md, Early start).
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def dot(a, b, acc):
    """acc + a @ b in float32. The interpreter multiplies bf16 wrongly, without a word: there operands are widened."""
    if _WIDENS:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))
