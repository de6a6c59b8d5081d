"""Cosines and sines of a step's positions, once a step for all layers (``models/layers/rotary.py``)."""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2


@triton.jit
def _cos_sin(positions, inverse_frequencies, scale, out, HALF: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    frequency = tl.load(inverse_frequencies + i, mask=i < HALF, other=0.0)
    wait_for_previous(PDL)
    angle = tl.load(positions + row).to(tl.float32) * frequency
    tl.store(out + row * 2 * HALF + i, (tl.cos(angle) * scale).to(out.dtype.element_ty), mask=i < HALF)
    tl.store(out + row * 2 * HALF + HALF + i, (tl.sin(angle) * scale).to(out.dtype.element_ty), mask=i < HALF)


def cos_sin(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, scale: float, out: torch.Tensor, tile: Tile
) -> None:
    """positions [T] int32, inverse_frequencies [r / 2] float32 -> out [T, r]: cosines, then sines, in out's dtype.

    All are multiplied by ``scale``, YaRN's attention factor.
    """
    (rows,), (half,) = positions.shape, inverse_frequencies.shape
    launch(
        _cos_sin,
        (rows,),
        tile,
        positions=Operand(positions, (rows,), torch.int32),
        inverse_frequencies=Operand(inverse_frequencies, (half,), torch.float32),
        scale=float(scale),
        out=Operand(out, (rows, 2 * half), out.dtype),
        HALF=half,
        BLOCK=next_power_of_2(half),
    )


@triton.jit
def normed_and_rotated(x, weight, cos_sin, d, DIM: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr):
    """The heads at pointers x [heads, 1] -> [heads, DIM] in float32: x / rms(x) * (1 + weight), its first dims rotated.

    ``cos_sin`` points to this token's row. The half that a dim is rotated with is read a second time, which is cheaper
    than moving it between threads.
    """
    other = tl.where(d < HALF, d + HALF, tl.where(d < 2 * HALF, d - HALF, d))
    turned = d < 2 * HALF
    cos = tl.load(cos_sin + d % HALF, mask=turned, other=1.0).to(tl.float32)
    sin = tl.load(cos_sin + HALF + d % HALF, mask=turned, other=0.0).to(tl.float32)
    sin = tl.where(d < HALF, -sin, sin)
    values = tl.load(x + d[None, :]).to(tl.float32)
    partner = tl.load(x + other[None, :]).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / DIM + EPS)
    scale = (1.0 + tl.load(weight + d).to(tl.float32)) * cos
    partner_scale = (1.0 + tl.load(weight + other).to(tl.float32)) * sin
    return (values * scale[None, :] + partner * partner_scale[None, :]) * inverse[:, None]
