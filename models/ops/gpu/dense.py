"""Dense products of many rows, and the shared expert's activation. Products are the vendor's (cuBLAS, hipBLASLt): on an
H200 they run at 630 to 760 TFLOP/s from 8,192 rows on."""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.numerics import narrow, quick_sigmoid
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2


def project(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K], weight [N, K] -> [T, N], into ``out`` if given, whose rows may have gaps.

    The library chooses its kernel by shape and alignment alone, so that a step has the same bits in every process.
    """
    return torch.mm(x, weight.t(), out=out)


def shared_activation(gate_up: torch.Tensor, gate: torch.Tensor, tile: Tile) -> torch.Tensor:
    """gate_up [T, 2 I] (all gates, then all ups), gate [T] -> silu(gate) * up * sigmoid(the row's gate) [T, I].

    Both may be columns of one wider tensor, whose rows they share. The row's gate may stand before the down projection,
    since that is linear.
    """
    rows, double = gate_up.shape
    out = gate_up.new_empty(rows, double // 2)
    launch(
        _shared_activation,
        (rows,),
        tile,
        gate_up=Operand(gate_up, (rows, double), gate_up.dtype, strided=True),
        gate_up_stride=gate_up.stride(0),
        gate=Operand(gate[:, None], (rows, 1), gate_up.dtype, strided=True),
        gate_stride=gate.stride(0),
        out=out,
        INNER=double // 2,
        BLOCK=next_power_of_2(double // 2),
    )
    return out


@triton.jit
def _shared_activation(
    gate_up, gate_up_stride, gate, gate_stride, out, INNER: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    ok = i < INNER
    g = tl.load(gate_up + row * gate_up_stride + i, mask=ok, other=0.0).to(tl.float32)
    u = tl.load(gate_up + row * gate_up_stride + INNER + i, mask=ok, other=0.0).to(tl.float32)
    whole = quick_sigmoid(tl.load(gate + row * gate_stride).to(tl.float32))
    tl.store(out + row * INNER + i, narrow(g * quick_sigmoid(g) * u * whole, out.dtype.element_ty), mask=ok)
