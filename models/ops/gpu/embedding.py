"""Rows of the embedding for a step's tokens, which the host names or the device has kept since it sampled them."""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import next_power_of_2


@triton.jit
def _embed(
    token_ids,
    slots,
    next_tokens,
    weight,
    out,
    start,
    num_ids,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    token = tl.load(token_ids + row)
    if token < 0:
        token = tl.load(next_tokens + tl.load(slots + row))
    token = token.to(tl.int64) - start
    here = (token + 0 * k >= 0) & (token + 0 * k < num_ids) & (k < WIDTH)
    tl.store(out + row * WIDTH + k, tl.load(weight + token * WIDTH + k, mask=here, other=0.0), mask=k < WIDTH)


def embed(
    token_ids: torch.Tensor,
    slots: torch.Tensor,
    next_tokens: torch.Tensor,
    weight: torch.Tensor,
    start: int,
    out: torch.Tensor,
    tile: Tile,
) -> None:
    """token_ids [T] int32 -> out [T, H]. weight [V, H] has the ids from ``start`` on; others give zeros.

    A negative id stands for the one that the sampler has left for the row: ``next_tokens[slots[row]]``, both int32.
    """
    (rows,), (num_ids, width), dtype = token_ids.shape, weight.shape, weight.dtype
    launch(
        _embed,
        (rows,),
        tile,
        token_ids=Operand(token_ids, (rows,), torch.int32),
        slots=Operand(slots, (rows,), torch.int32),
        next_tokens=Operand(next_tokens, tuple(next_tokens.shape), torch.int32),
        weight=Operand(weight, (num_ids, width), dtype),
        out=Operand(out, (rows, width), dtype),
        start=start,
        num_ids=num_ids,
        WIDTH=width,
        BLOCK=next_power_of_2(width),
    )
