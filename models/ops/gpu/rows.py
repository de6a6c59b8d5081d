"""A step's decode rows from the request table and back, on the device: no number of theirs passes the host.

Legend: T rows of the step, P pages of a table, S sampled rows. Slots, lengths, pages and tokens are int32.
"""

import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, launch
from splitrank.models.ops.gpu.primitives import wait_for_previous
from splitrank.models.ops.gpu.sampling import SamplingRows
from splitrank.models.ops.gpu.tiles import Tile
from splitrank.models.rounding import ceil_div

_TILE = Tile(num_warps=4)
_BLOCK = tl.constexpr(1024)


@triton.jit
def _gather_rows(slots, lengths, pages, positions, tables, width, PDL: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait_for_previous(PDL)
    slot = tl.load(slots + row).to(tl.int64)
    if part == 0:
        tl.store(positions + row, tl.load(lengths + slot))
    page = part * _BLOCK + tl.arange(0, _BLOCK)
    known = tl.load(pages + slot * width + page, mask=page < width, other=0)
    tl.store(tables + row * width + page, known, mask=page < width)


def gather_rows(
    slots: torch.Tensor, lengths: torch.Tensor, pages: torch.Tensor, positions: torch.Tensor, tables: torch.Tensor
) -> None:
    """slots [T]; lengths [slots] and pages [slots, P] of the table -> positions [T], tables [T, P]."""
    (rows,), (num_slots, width) = slots.shape, pages.shape
    launch(
        _gather_rows,
        (rows, ceil_div(width, _BLOCK.value)),
        _TILE,
        slots=Operand(slots, (rows,), torch.int32),
        lengths=Operand(lengths, (num_slots,), torch.int32),
        pages=Operand(pages, (num_slots, width), torch.int32),
        positions=Operand(positions, (rows,), torch.int32),
        tables=Operand(tables, (rows, width), torch.int32),
        width=width,
    )


@triton.jit
def _advance_rows(slots, lengths, num_live, PDL: tl.constexpr):
    row = tl.program_id(0)
    wait_for_previous(PDL)
    if row < tl.load(num_live):
        length = lengths + tl.load(slots + row)
        tl.store(length, tl.load(length) + 1)


def advance_rows(slots: torch.Tensor, lengths: torch.Tensor, num_live: torch.Tensor) -> None:
    """One token more in each of the first ``num_live`` [1] slots."""
    (rows,) = slots.shape
    launch(
        _advance_rows,
        (rows,),
        _TILE,
        slots=Operand(slots, (rows,), torch.int32),
        lengths=Operand(lengths, tuple(lengths.shape), torch.int32),
        num_live=Operand(num_live, (1,), torch.int32),
    )


@triton.jit
def _keep_tokens(slots, tokens, last_tokens, num_output, num_live, PDL: tl.constexpr):
    row = tl.program_id(0)
    wait_for_previous(PDL)
    if row < tl.load(num_live):
        slot = tl.load(slots + row)
        tl.store(last_tokens + slot, tl.maximum(tl.load(tokens + row), 0))
        tl.store(num_output + slot, tl.load(num_output + slot) + 1)


def keep_tokens(
    slots: torch.Tensor,
    tokens: torch.Tensor,
    last_tokens: torch.Tensor,
    num_output: torch.Tensor,
    num_live: torch.Tensor,
) -> None:
    """tokens [S] sampled for ``slots`` [S] -> the table's last_tokens [slots] and num_output [slots] int64.

    Of the first ``num_live`` [1] rows. A token that means nothing may have any id; the row feeds it until it is ended.
    """
    (rows,), table = slots.shape, tuple(last_tokens.shape)
    launch(
        _keep_tokens,
        (rows,),
        _TILE,
        slots=Operand(slots, (rows,), torch.int32),
        tokens=Operand(tokens, (rows,), torch.int32),
        last_tokens=Operand(last_tokens, table, torch.int32),
        num_output=Operand(num_output, table, torch.int64),
        num_live=Operand(num_live, (1,), torch.int32),
    )


@triton.jit
def _gather_sampling(
    slots, temperature, top_k, top_p, min_p, seeds, positions,
    out_temperature, out_top_k, out_top_p, out_min_p, out_seeds, out_positions, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    wait_for_previous(PDL)
    slot = tl.load(slots + row)
    tl.store(out_temperature + row, tl.load(temperature + slot))
    tl.store(out_top_k + row, tl.load(top_k + slot))
    tl.store(out_top_p + row, tl.load(top_p + slot))
    tl.store(out_min_p + row, tl.load(min_p + slot))
    tl.store(out_seeds + row, tl.load(seeds + slot))
    tl.store(out_positions + row, tl.load(positions + slot))


def gather_sampling(slots: torch.Tensor, table: SamplingRows, rows: SamplingRows) -> None:
    """slots [S]; ``table``: parameters by slot -> ``rows``: those of the S rows."""
    launch(
        _gather_sampling,
        (slots.shape[0],),
        _TILE,
        slots=Operand(slots, tuple(slots.shape), torch.int32),
        **table.operands(),
        **{f"out_{name}": operand for name, operand in rows.operands().items()},
    )
