"""x W^T for few rows, bound by reading W once: out, qkv and DeltaNet projections, router.

Three forms. ``fma``, for one to a few rows: a block holds whole rows of W in registers, read before the wait for the
launch before, so that reading overlaps its end; a norm may stand in the prologue. ``dot``: tensor cores, with rows of W
as the first operand. ``library``: the vendor's product, from where arithmetic bounds it. Legend: T rows, K and N width
before and after.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu import dense
from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.norm import gated_norm_of_heads, sum_of_parts
from splitrank.models.ops.gpu.primitives import dot, wait_for_previous
from splitrank.models.ops.gpu.tiles import LIBRARY, Tile
from splitrank.models.rounding import ceil_div, next_power_of_2


@triton.jit
def whole_rows(weight, n, N, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Rows n of weight [N, K] -> [n, BLOCK_K] in registers, zeros beyond N and K."""
    k = tl.arange(0, BLOCK_K)
    at = weight + n.to(tl.int64)[:, None] * K + k[None, :]
    inside = (n < N)[:, None] if K == BLOCK_K else (n < N)[:, None] & (k < K)[None, :]
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def product_with_row(rows, x, row, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """rows [n, BLOCK_K] times row ``row`` of x [T, K] -> [n] in float32."""
    k = tl.arange(0, BLOCK_K)
    values = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    return tl.sum(rows.to(tl.float32) * values[None, :], 1)


@triton.jit
def product_with_tokens(
    x, weight, n, t, N, num_rows, ROW: tl.constexpr, K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Rows n of weight [N, K] times rows t of x [T, K], both ROW apart, -> [n, t] in float32; rows beyond the last are
    the last."""
    n = tl.minimum(n, N - 1).to(tl.int64)
    t = tl.minimum(t, num_rows - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for start in range(0, K, BLOCK_K):
        weight_at = weight + n[:, None] * ROW + (start + k)[None, :]
        x_at = x + t[None, :] * ROW + (start + k)[:, None]
        if K % BLOCK_K == 0:
            acc = dot(tl.load(weight_at), tl.load(x_at), acc)
        else:
            inside = start + k < K
            rows = tl.load(weight_at, mask=inside[None, :], other=0.0)
            acc = dot(rows, tl.load(x_at, mask=inside[:, None], other=0.0), acc)
    return acc


@triton.jit
def _project_fma(
    x,
    weight,
    out,
    N,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = whole_rows(weight, n, N, K, BLOCK_K)
    wait_for_previous(PDL)
    for row in tl.static_range(NUM_ROWS):
        y = product_with_row(rows, x, row, K, BLOCK_K)
        tl.store(out + row * N + n, y.to(out.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["num_rows"])
def _project_dot(
    x,
    weight,
    out,
    out_stride,
    shard_stride,
    N,
    num_rows,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SHARDS: tl.constexpr,
    PDL: tl.constexpr,
):
    token_blocks = tl.cdiv(num_rows, BLOCK_T)  # neighbours in the grid read the same weights
    block = tl.program_id(0) // token_blocks
    shard = block % SHARDS
    n = block // SHARDS * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(0) % token_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    wait_for_previous(PDL)
    W: tl.constexpr = K // SHARDS
    y = product_with_tokens(
        x + shard * W, weight + shard * W, n, t, N, num_rows, K, W, BLOCK_N, BLOCK_K, BLOCK_T
    )  # fmt: skip
    inside = (n < N)[:, None] & (t < num_rows)[None, :]
    to = out + t.to(tl.int64)[None, :] * out_stride + shard * shard_stride + n[:, None]
    tl.store(to, y.to(out.dtype.element_ty), mask=inside)


def project(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, tile: Tile) -> None:
    """x [T, K], weight [N, K] -> out [T, N], all in one dtype, sums in float32. N a multiple of 16 reads widest.

    In the form ``dot``, ``out`` may have gaps between its rows, and may be [T, S, N]: products of S equal runs of
    columns, for the next norm to add.
    """
    if tile.form == LIBRARY:
        dense.project(x, weight, out)
        return
    (rows, width), (columns, _), dtype = x.shape, weight.shape, x.dtype
    shards = out.shape[1] if out.dim() == 3 else 1
    operands = {
        "x": Operand(x, (rows, width), dtype),
        "weight": Operand(weight, (columns, width), dtype),
        "out": Operand(out, (rows, *out.shape[1:-1], columns), dtype, strided=tile.form != "fma"),
    }
    if tile.form == "fma":
        grid, sizes = fma_launch(columns, width, tile)
        launch(_project_fma, grid, tile, N=columns, NUM_ROWS=rows, **sizes, **operands)
    else:
        (blocks,), sizes = dot_launch(rows, columns, width // shards, tile)
        rest = {"N": columns, "num_rows": rows, "SHARDS": shards, **sizes, "K": width}
        strides = {"out_stride": out.stride(0), "shard_stride": out.stride(-2) if shards > 1 else 0}
        launch(_project_dot, (blocks * shards,), tile, **strides, **rest, **operands)


def fma_launch(columns: int, width: int, tile: Tile) -> tuple[tuple[int, ...], dict[str, int]]:
    """Grid and constants of the form ``fma``."""
    sizes = {"K": width, "BLOCK_K": next_power_of_2(width), "BLOCK_N": tile["n"]}
    return (ceil_div(columns, tile["n"]),), sizes


def dot_launch(rows: int, columns: int, width: int, tile: Tile) -> tuple[tuple[int, ...], dict[str, int]]:
    """Grid and constants of the form ``dot``: all rows in one block of tokens, up to the tile's size. An exact tile has
    its size for any number of rows."""
    block_t = tile["t"] if tile.exact else min(tile["t"], max(8, next_power_of_2(rows)))
    block_k = min(tile["k"], max(16, next_power_of_2(width)))
    sizes = {"K": width, "BLOCK_N": tile["n"], "BLOCK_K": block_k, "BLOCK_T": block_t}
    return (ceil_div(columns, tile["n"]) * ceil_div(rows, block_t),), sizes


@triton.jit
def _add_norm_project(
    residual,
    parts,
    norm_weight,
    weight,
    out,
    residual_out,
    normed,
    N,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    EPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The first NUM_ROWS programs write the residual and the normed row, the others project."""
    writer = tl.program_id(0) < NUM_ROWS
    n = (tl.program_id(0) - NUM_ROWS) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = k < K
    scale = 1.0 + tl.load(norm_weight + k, mask=inside, other=0.0).to(tl.float32)
    dtype = residual_out.dtype.element_ty
    if writer:
        wait_for_previous(PDL)
        row = tl.program_id(0)
        x = tl.load(residual + row * K + k, mask=inside, other=0.0).to(tl.float32)
        x = (x + sum_of_parts(parts, row, k, inside, K, NUM_PARTS).to(dtype).to(tl.float32)).to(dtype)
        tl.store(residual_out + row * K + k, x, mask=inside)
        x = x.to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, 0) / K + EPS) * scale
        tl.store(normed + row * K + k, x.to(dtype), mask=inside)
    else:
        rows = whole_rows(weight, n, N, K, BLOCK_K).to(tl.float32)
        wait_for_previous(PDL)
        for row in tl.static_range(NUM_ROWS):
            x = tl.load(residual + row * K + k, mask=inside, other=0.0).to(tl.float32)
            x += sum_of_parts(parts, row, k, inside, K, NUM_PARTS).to(dtype).to(tl.float32)
            x = x.to(dtype).to(tl.float32)
            y = tl.sum(rows * (x * scale)[None, :], 1) * tl.rsqrt(tl.sum(x * x, 0) / K + EPS)
            tl.store(out + row * N + n, y.to(dtype), mask=n < N)


def add_norm_project(
    residual: torch.Tensor,
    parts: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    residual_out: torch.Tensor,
    normed: torch.Tensor,
    eps: float,
    tile: Tile,
) -> None:
    """``add_norm`` and ``project`` in one launch, for one row or two (form ``fma``): every block norms the rows itself.

    residual [T, K], parts [T, P, K], norm_weight [K], weight [N, K] -> out [T, N], residual_out and normed [T, K].
    ``residual_out`` must not be ``residual``.
    """
    assert tile.form == "fma", tile
    (rows, width), columns, dtype = residual.shape, weight.shape[0], residual.dtype
    (blocks,), sizes = fma_launch(columns, width, tile)
    launch(
        _add_norm_project,
        (rows + blocks,),
        tile,
        residual=Operand(residual, (rows, width), dtype),
        parts=Operand(parts, (rows, parts.shape[1], width), dtype),
        norm_weight=Operand(norm_weight, (width,), dtype),
        weight=Operand(weight, (columns, width), dtype),
        out=Operand(out, (rows, columns), dtype),
        residual_out=Operand(residual_out, (rows, width), dtype),
        normed=Operand(normed, (rows, width), dtype),
        N=columns,
        NUM_ROWS=rows,
        NUM_PARTS=parts.shape[1],
        EPS=eps,
        **sizes,
    )


@triton.jit
def _gated_norm_project(
    x,
    gate,
    norm_weight,
    weight,
    out,
    N,
    gate_stride,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    EPS: tl.constexpr,
    PDL: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = whole_rows(weight, n, N, K, BLOCK_K).to(tl.float32)
    at = tl.arange(0, BLOCK_K // DIM)[:, None] * DIM + tl.arange(0, DIM)[None, :]
    scale = tl.load(norm_weight + tl.arange(0, DIM))
    wait_for_previous(PDL)
    for row in tl.static_range(NUM_ROWS):
        o = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
        z = tl.load(gate + row * gate_stride + at, mask=at < K, other=0.0).to(tl.float32)
        values = tl.reshape(gated_norm_of_heads(o, z, scale, EPS), [BLOCK_K])
        y = tl.sum(rows * values[None, :], 1)
        tl.store(out + row * N + n, y.to(out.dtype.element_ty), mask=n < N)


def gated_norm_project(
    x: torch.Tensor,
    gate: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    tile: Tile,
) -> None:
    """``gated_norm`` and ``project`` in one launch, for one row or two (form ``fma``).

    x [T, heads, dim], gate [T, heads * dim] (may be columns of a wider tensor), norm_weight [dim] in float32,
    weight [N, heads * dim] -> out [T, N].
    """
    assert tile.form == "fma", tile
    (rows, heads, dim), columns, dtype = x.shape, weight.shape[0], x.dtype
    grid, sizes = fma_launch(columns, heads * dim, tile)
    launch(
        _gated_norm_project,
        grid,
        tile,
        x=Operand(x, (rows, heads, dim), dtype),
        gate=Operand(gate, (rows, heads * dim), dtype, strided=True),
        norm_weight=Operand(norm_weight, (dim,), torch.float32),
        weight=Operand(weight, (columns, heads * dim), dtype),
        out=Operand(out, (rows, columns), dtype),
        N=columns,
        gate_stride=gate.stride(0),
        DIM=dim,
        NUM_ROWS=rows,
        EPS=eps,
        **sizes,
    )
