"""The norms of the residual stream and of DeltaNet's output as launches of their own, for steps of two rows and more.

At one row they are the prologue of the projection that follows (``projection.py``). Legend: T rows, H hidden size.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import silu, wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div, next_power_of_2


@triton.jit
def sum_of_parts(parts, row, k, inside, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr, SHARDS: tl.constexpr = 1):
    """One row's parts added in float32: those of a shard in their order, shards along a binary tree. Rounded once by
    whoever calls: what every stage and rank forms."""
    OF_SHARD: tl.constexpr = NUM_PARTS // SHARDS
    at = parts + row * NUM_PARTS * WIDTH + k
    total = _sum_of_shard(at, inside, WIDTH, OF_SHARD)
    if SHARDS > 1:
        total += _sum_of_shard(at + OF_SHARD * WIDTH, inside, WIDTH, OF_SHARD)
    if SHARDS > 2:
        right = _sum_of_shard(at + 2 * OF_SHARD * WIDTH, inside, WIDTH, OF_SHARD)
        total += right + _sum_of_shard(at + 3 * OF_SHARD * WIDTH, inside, WIDTH, OF_SHARD)
    return total


@triton.jit
def _sum_of_shard(at, inside, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr):
    total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, NUM_PARTS):
        total += tl.load(at + part * WIDTH, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def _sum_parts(
    parts,
    out,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    SHARDS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    total = sum_of_parts(parts, row, k, k < WIDTH, WIDTH, NUM_PARTS, SHARDS)
    tl.store(out + row * WIDTH + k, total.to(out.dtype.element_ty), mask=k < WIDTH)


def sum_parts(parts: torch.Tensor, out: torch.Tensor, tile: Tile, shards: int = 1) -> None:
    """parts [T, P, H] -> out [T, H]: what crosses a stage, or meets other ranks' parts in an all-reduce. ``shards``: of
    that many runs of parts, which are added along a tree."""
    rows, num_parts, width = parts.shape
    launch(
        _sum_parts,
        (rows,),
        tile,
        parts=Operand(parts, (rows, num_parts, width), parts.dtype),
        out=Operand(out, (rows, width), out.dtype),
        WIDTH=width,
        BLOCK=next_power_of_2(width),
        NUM_PARTS=num_parts,
        SHARDS=shards,
    )


@triton.jit
def _add_norm(
    residual,
    parts,
    weight,
    residual_out,
    normed,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    SHARDS: tl.constexpr,
    EPS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < WIDTH
    scale = 1.0 + tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    hidden = sum_of_parts(parts, row, k, inside, WIDTH, NUM_PARTS, SHARDS)
    hidden = hidden.to(residual_out.dtype.element_ty).to(tl.float32)
    x = tl.load(residual + row * WIDTH + k, mask=inside, other=0.0).to(tl.float32) + hidden
    x = x.to(residual_out.dtype.element_ty)
    tl.store(residual_out + row * WIDTH + k, x, mask=inside)
    x = x.to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + EPS) * scale
    tl.store(normed + row * WIDTH + k, x.to(normed.dtype.element_ty), mask=inside)


def add_norm(
    residual: torch.Tensor,
    parts: torch.Tensor,
    weight: torch.Tensor,
    residual_out: torch.Tensor,
    normed: torch.Tensor,
    eps: float,
    tile: Tile,
    shards: int = 1,
) -> None:
    """residual [T, H] + the sum of parts [T, P, H] -> residual_out [T, H], and its norm times 1 + weight [H] -> normed.

    All in the model's dtype, parts perhaps in float32, as sums are; ``shards`` as in ``sum_parts``. ``residual_out``
    may be ``residual`` (reference: ``Qwen3_5MoeRMSNorm``).
    """
    (rows, width), dtype, num_parts = residual.shape, residual.dtype, parts.shape[1]
    launch(
        _add_norm,
        (rows,),
        tile,
        residual=Operand(residual, (rows, width), dtype),
        parts=Operand(parts, (rows, num_parts, width), parts.dtype),
        weight=Operand(weight, (width,), dtype),
        residual_out=Operand(residual_out, (rows, width), dtype),
        normed=Operand(normed, (rows, width), dtype),
        WIDTH=width,
        BLOCK=next_power_of_2(width),
        NUM_PARTS=num_parts,
        SHARDS=shards,
        EPS=eps,
    )


@triton.jit
def gated_norm_of_heads(x, gate, scale, EPS: tl.constexpr):
    """x / rms(x) * scale * silu(gate) over the last dim of [heads, dim], in float32."""
    inverse = tl.rsqrt(tl.sum(x * x, 1) / x.shape[1] + EPS)
    return x * inverse[:, None] * scale[None, :] * silu(gate)


@triton.jit
def _gated_norm(
    x,
    gate,
    weight,
    out,
    gate_stride,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    EPS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    inside = head < NUM_HEADS
    at = head * DIM + tl.arange(0, DIM)[None, :]
    scale = tl.load(weight + tl.arange(0, DIM))
    wait_for_previous(PDL)
    o = tl.load(x + row * NUM_HEADS * DIM + at, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    y = gated_norm_of_heads(o, z, scale, EPS)
    tl.store(out + row * NUM_HEADS * DIM + at, y.to(out.dtype.element_ty), mask=inside)


def gated_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, tile: Tile
) -> None:
    """x [T, heads, dim] / rms * weight [dim] (float32) * silu(gate [T, heads * dim]) -> out like x.

    ``gate`` may be columns of a wider tensor. ``dim`` is a power of two (reference: ``Qwen3_5MoeRMSNormGated``).
    """
    (rows, heads, dim), dtype, block = x.shape, x.dtype, tile["heads"]
    launch(
        _gated_norm,
        (rows, ceil_div(heads, block)),
        tile,
        x=Operand(x, (rows, heads, dim), dtype),
        gate=Operand(gate, (rows, heads * dim), dtype, strided=True),
        weight=Operand(weight, (dim,), torch.float32),
        out=Operand(out, (rows, heads, dim), dtype),
        gate_stride=gate.stride(0),
        NUM_HEADS=heads,
        DIM=dim,
        BLOCK_HEADS=block,
        EPS=eps,
    )
